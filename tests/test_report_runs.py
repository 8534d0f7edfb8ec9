"""A run with a page is the same run, bit for bit, and leaves the page and its examples of filled masks."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs import figures, newest_arrays, run, train_command

STEPS = ("train.num_steps=8", "eval.every=4", "checkpoint.every=4", "log.every=4")


def train(workdir: Path, data: Path, *overrides: str, page: bool) -> str:
    done = run(train_command(workdir, *STEPS, f"log.report={page}", *overrides, data=data))
    assert done.returncode == 0, done.stderr
    return done.stdout


def samples(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def reported(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    workdir = tmp_path_factory.mktemp("reported") / "run"
    return workdir, train(workdir, tiny_dataset, page=True)


def test_each_evaluation_adds_what_the_model_fills_in_for_the_same_masks(reported: tuple[Path, str]):
    lines = samples(reported[0])
    assert [line["step"] for line in lines] == [4, 8]
    first, last = (line["samples"] for line in lines)
    assert len(first) == 4
    for before, after in zip(first, last, strict=True):
        assert before["text"] == after["text"]
        assert len(before["text"]) == len(before["masks"]) + 1 > 1
        assert [mask["answer"] for mask in before["masks"]] == [mask["answer"] for mask in after["masks"]]
    assert all(0 < mask["probability"] <= 1 and mask["guess"] for sample in last for mask in sample["masks"])


def test_the_page_is_there_when_the_command_ends_or_one_line_says_why_not(reported: tuple[Path, str]):
    workdir, output = reported
    if importlib.util.find_spec("matplotlib") is None:
        before, *after = output.split("no report.html: it needs matplotlib: pip install 'bert_jax[report]'")
        assert "finished: 8 steps" in before
        assert len(after) == 1
        assert "next:" in after[0]
        assert not (workdir / "report.html").exists()
        return
    page = (workdir / "report.html").read_text()
    assert "8 of 8" in page
    assert "<h2>Filled masks</h2>" in page
    assert "<h2>Data</h2>" in page
    assert "report.html" not in output


@pytest.mark.slow
def test_a_continued_run_repeats_the_examples_after_its_checkpoint(
    reported: tuple[Path, str], tiny_dataset: Path, tmp_path: Path
):
    workdir = reported[0]
    with (workdir / "samples.jsonl").open("a") as file:
        file.write('{"step": 10, "samples": []}\n{"step": 11, "sam')  # a killed run got further than its checkpoint
    train(workdir, tiny_dataset, "train.num_steps=12", page=True)
    assert [line["step"] for line in samples(workdir)] == [4, 8, 12]


@pytest.mark.slow
def test_a_page_changes_no_bit_of_the_run(tiny_dataset: Path, tmp_path: Path):
    with_page, without = tmp_path / "with", tmp_path / "without"
    train(with_page, tiny_dataset, page=True)
    train(without, tiny_dataset, page=False)
    assert newest_arrays(with_page) == newest_arrays(without)
    assert figures(with_page) == figures(without)
    assert not (without / "samples.jsonl").exists()
    assert not (without / "report.html").exists()
