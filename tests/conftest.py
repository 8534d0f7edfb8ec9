"""Set up every test: eight CPU devices, parsed flags, the shared data, one tiny data set."""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pytest
from absl import flags

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave soaks out unless a marker expression asks for them."""
    if not config.getoption("markexpr"):
        for item in items:
            if "soak" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="a soak: run with `pytest -m soak`"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of genuine data, or skip with the reason."""
    path = Path(os.environ.get("BERT_JAX_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"needs the shared data folder: set BERT_JAX_TEST_DATA (looked in {path})")
    return path
