"""On a terminal: lines come when they are printed, broken between words; data and commands to copy stay whole."""

import json
import re

import pytest

from bert_jax.wrapping import wrap
from tests.terminals import on_terminal

LONG = "a line of many words " + " ".join(f"word{number}" for number in range(40))
START = """
import sys, time
from bert_jax import streams
from bert_jax.runs.progress import Progress
streams.prepare()
"""


def test_lines_are_broken_between_words_and_indented():
    lines = wrap(f"short\n{LONG}", width=40).split("\n")
    assert lines[0] == "short"
    assert max(map(len, lines)) <= 40
    assert all(line.startswith("  ") and not line.startswith("   ") for line in lines[2:])
    assert " ".join(" ".join(lines[1:]).split()) == LONG
    assert wrap(LONG, width=0) == LONG


@pytest.mark.parametrize(
    "line", ["    bert-jax " + "--flag=value " * 20, json.dumps({"a": LONG}), '  "key": "' + LONG, "x" * 200]
)
def test_commands_json_and_long_words_are_not_broken(line: str):
    assert wrap(line, width=40) == line


def test_output_of_a_command_fits_the_terminal():
    output = on_terminal(START + f"print({LONG!r}); print({LONG!r}, file=sys.stderr)")
    assert max(map(len, output.splitlines())) <= 80
    assert output.split() == [*LONG.split(), *LONG.split()]


@pytest.mark.parametrize("variables", [{}, {"PYTHONUNBUFFERED": "1"}])
def test_lines_of_a_run_stand_above_its_bar_when_they_are_printed(variables: dict[str, str]):
    code = START + "shown = Progress(start=0, end=9); shown.say('the first line'); shown.advance(1); time.sleep(60)"
    output = on_terminal(code, until="the first line", variables=variables)
    assert "the first line" in re.split(r"[\r\n]+", output)  # not glued to the bar


def test_the_line_of_a_step_fits_the_terminal():
    metrics = {
        "train/loss": 7.007,
        "train/mlm_loss": 6.345,
        "train/mlm_accuracy": 0.103,
        "train/nsp_accuracy": 0.608,
        "train/learning_rate": 3.02e-4,
        "perf/sequences_per_second": 123.1,
    }
    code = START + f"shown = Progress(start=0, end=100_000); shown.line(99_950, metrics={metrics}); shown.close()"
    lines = [line for line in on_terminal(code).replace("\r", "\n").splitlines() if "loss" in line and "|" not in line]
    assert lines == ["step 99950  loss 7.007  mlm 6.345  acc 0.103  nsp 0.608  lr 3.02e-04"]
    assert "seq/s" in on_terminal(code, columns=100)
