"""What the TPU compiler says of every config is what is recorded: collectives, bytes, memory, cycles."""

from importlib import metadata
from typing import Any

import pytest

from tests.golden import children, records
from tests.golden.compiling import versions
from tests.golden.tables import MORE_PROGRAMS, PROGRAMS
from tests.test_configs import CONFIGS


def why_not_compared(golden: dict[str, Any]) -> str:
    """Return why golden facts cannot be those of the installed compiler, "" where they must be."""
    command = f"to look at its facts: {records.REGENERATE} programs"
    try:
        installed = versions()
    except metadata.PackageNotFoundError:
        return f"needs the plan extra (libtpu); {command}"
    if golden["versions"] == installed:
        return ""
    return f"golden facts are of {golden['versions']}, installed is {installed}; {command}"


def test_every_config_for_tpus_has_a_golden_program():
    sizes = {name for name in CONFIGS if ":L-" in name}  # of a program that is there; plan does not know teachers
    assert {name.partition("@")[0] for name in PROGRAMS} == CONFIGS.keys() - {"tiny_cpu", "distill_minilm"} - sizes
    assert not set(PROGRAMS) & set(MORE_PROGRAMS)


def test_every_file_is_of_a_program_in_the_table():
    files = set(records.PROGRAMS.glob("*.json"))
    assert files
    assert files <= {records.program_file(name) for name in (*PROGRAMS, *MORE_PROGRAMS)}


def test_a_changed_fact_is_reported_by_name_with_the_command():
    name = next(iter(PROGRAMS))
    golden, current = (records.read(records.program_file(name)) for _ in range(2))
    assert not records.program_difference(name, golden=golden, current=current)
    current["phases"][0]["collectives"].append({"kind": "all-gather", "count": 1})
    current["phases"][0]["hbm"]["temporary_bytes"] += 1
    message = records.program_difference(name, golden=golden, current=current)
    for words in (name, "3 facts differ", "phases/0/hbm/temporary_bytes", "python -m tests.golden --write programs"):
        assert words in message


@pytest.mark.soak
def test_programs_are_the_golden_ones():
    golden = {name: records.read(records.program_file(name)) for name in PROGRAMS}
    absent = [name for name in PROGRAMS if golden[name] is None]
    assert not absent, f"no golden facts of {', '.join(absent)}: {records.REGENERATE} programs {' '.join(absent)}"
    if reason := next(filter(None, map(why_not_compared, golden.values())), ""):
        pytest.skip(reason)
    current = {item["name"]: item["facts"] for item in children.compiled(list(PROGRAMS))}
    failures = [records.program_difference(name, golden=golden[name], current=current[name]) for name in PROGRAMS]
    assert not any(failures), "\n".join(filter(None, failures))
