"""Set up every test: eight CPU devices, parsed flags, the shared data, one tiny data set."""

import concurrent.futures
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

from packaging.version import Version

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile far more than they compute. 40 % of that time is LLVM's optimizer, half of the rest is XLA's emitters of
# fusions, which a jaxlib before 0.11.1 does without; libtpu refuses that flag. CI checks numerics and soaks as a user's
# run compiles them: XLA_FLAGS set to anything, even to nothing, takes the place of this default.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + (
        " --xla_cpu_use_fusion_emitters=false"
        if Version(metadata.version("jaxlib")) < Version("0.11.1") and util.find_spec("libtpu") is None
        else ""
    ),
)
os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
# Half of the time goes into compiling. Workers, child processes and later runs share what one of them compiled.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "jax"))
# A shape that broadcasts by accident is found here, and in the processes that tests start: each axis is written out.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import pytest
from absl import flags

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests and soaks out unless the marker expression names them; `-m numerics` has its slow tests too."""
    expression = config.getoption("markexpr") or ""
    for tier in ("slow", "soak"):
        for item in items if tier not in expression else ():
            is_wanted = tier == "slow" and "numerics" in expression and item.get_closest_marker("numerics")
            if item.get_closest_marker(tier) and not is_wanted:  # keywords hold names of folders too
                item.add_marker(pytest.mark.skip(reason=f"takes long: run with `pytest -m {tier}`"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of genuine data, or skip with the reason."""
    path = Path(os.environ.get("BERT_JAX_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"needs the shared data folder: set BERT_JAX_TEST_DATA (looked in {path})")
    return path


@pytest.fixture(scope="module")
def compiler() -> Iterator[Callable[..., Any]]:
    """Return a way to call a function where the TPU compiler may be loaded: in a process that does nothing else.

    jax's profiler crashes in a process that has loaded libtpu on a machine without TPUs (jax 0.10.2).
    """
    pytest.importorskip("libtpu", reason="needs the plan extra (libtpu)")
    context = multiprocessing.get_context("spawn")
    from bert_jax.planning.compiling import prepare_environment

    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=prepare_environment) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of the embedded corpus, with 512 pieces, at lengths 32 and 64."""
    from bert_jax.config import DataConfig
    from bert_jax.data.builder import build_dataset

    out = tmp_path_factory.mktemp("tiny") / "data"
    build_dataset(
        DataConfig(input="embedded", heldout_fraction=0.05),
        out=out,
        max_seq_lengths=(32, 64),
        vocab_size=512,
        report=lambda text: None,
    )
    return out
