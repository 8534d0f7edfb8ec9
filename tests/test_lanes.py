"""The lanes of CI: each runs wherever CI does, and the core tests that all of them run touch every package."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import pytest_collection_modifyitems

from tests.import_graph import PACKAGE, modules

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = sorted((ROOT / ".ci" / "constraints").glob("*.txt"))
LANES = [file.stem for file in CONSTRAINTS]


def core_tests() -> list[tuple[Path, str]]:
    """Return file and function (empty for all of a file) of each line."""
    lines = (ROOT / ".ci" / "core_tests.txt").read_text().splitlines()
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    return [(ROOT / file, test) for file, _, test in (name.partition("::") for name in names)]


@pytest.mark.parametrize("file", CONSTRAINTS, ids=LANES)
def test_a_lane_says_which_python_and_which_extras(file: Path):
    text = file.read_text()
    version = re.search(r"^# python: (3\.\d+)$", text, flags=re.MULTILINE)
    assert version
    assert re.search(r"^# extras: test(,\w+)*$", text, flags=re.MULTILINE)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert f'{{lane: {file.stem}, python: "{version[1]}"}}' in workflow


def test_every_dependency_has_a_lower_bound_for_the_oldest_lane():
    text = (ROOT / "setup.cfg").read_text()
    for name in ("install_requires", "test"):
        section = re.search(rf"^{name} =\n((?: .*\n)+)", text, flags=re.MULTILINE)
        assert section
        assert [line for line in section[1].splitlines() if ">=" not in line] == []


def test_core_tests_are_there_and_touch_every_package():
    touched = set()
    for file, test in core_tests():
        text = file.read_text()
        if test:
            marks = re.search(rf"((?:^@pytest.*\n)*)^def {test}\(", text, flags=re.MULTILINE)
            assert marks, f"{file.name} has no {test}"
            assert not re.search(r"mark\.(slow|soak)", marks[1]), f"{file.name}: {test} does not run without `-m`"
        touched |= set(re.findall(rf"\b{PACKAGE}\.(\w+)", text))
    packages = {parts[1] for name in modules() if len(parts := name.split(".")) > 2}
    assert packages - touched == set()


@pytest.mark.parametrize(
    ("expression", "left_out"),
    [
        ("", {"slow", "slow numerics", "soak", "soak numerics"}),
        ("numerics and not soak", {"slow"}),  # not selected, either
        ("numerics", {"slow", "soak", "soak numerics"}),
        ("(numerics or slow) and not soak", set()),
        ("soak", {"slow", "slow numerics"}),
    ],
)
def test_numerics_has_its_slow_tests_and_no_soak(expression: str, left_out: set[str]):
    class Item:
        def __init__(self, *marks: str):
            self.marks, self.added = marks, []

        def get_closest_marker(self, name: str) -> bool:
            return name in self.marks

        def add_marker(self, mark: pytest.MarkDecorator) -> None:
            self.added.append(mark.name)

    names = ("numerics", "slow", "slow numerics", "soak", "soak numerics")
    items = {name: Item(*name.split()) for name in names}
    config: Any = SimpleNamespace(getoption=lambda name: expression)
    pytest_collection_modifyitems(config, cast(Any, list(items.values())))
    assert {name for name, item in items.items() if item.added} == left_out
