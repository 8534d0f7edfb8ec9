"""Writers: metrics.jsonl survives kills, extras say what to install."""

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from bert_jax.config import LogConfig
from bert_jax.errors import UserError
from bert_jax.runs.writers import JsonLinesWriter, TensorBoardWriter, make_writers


def read(path: Path) -> list[dict[str, float | None]]:
    """Return the lines, each of which must be strict JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def write(path: Path, *steps: int, resume_step: int = 0) -> None:
    """Write a line for each step."""
    writer = JsonLinesWriter(path, resume_step=resume_step)
    for step in steps:
        writer.write(step, metrics={"train/loss": step / 8})
    writer.close()


def test_lines_are_json_with_their_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 10, 20)
    assert read(path) == [{"step": 10, "train/loss": 1.25}, {"step": 20, "train/loss": 2.5}]


def test_a_line_is_on_disk_before_the_writer_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonLinesWriter(path)
    writer.write(1, metrics={"train/loss": 1.0})
    assert len(read(path)) == 1
    writer.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_not_finite_becomes_null(tmp_path: Path, value: float | None) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonLinesWriter(path)
    writer.write(1, metrics={"train/loss": value, "train/mlm_loss": 1.5})
    writer.close()
    assert read(path) == [{"step": 1, "train/loss": None, "train/mlm_loss": 1.5}]


def test_figures_keep_their_bits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonLinesWriter(path)
    writer.write(1, metrics={"train/loss": 0.1 + 0.2})
    writer.close()
    assert read(path)[0]["train/loss"] == 0.1 + 0.2


@pytest.mark.parametrize(
    ("resume", "kept"), [(0, []), (10, [10]), (15, [10]), (20, [10, 20, 20]), (99, [10, 20, 20, 30])]
)
def test_lines_behind_the_resumed_step_are_removed(tmp_path: Path, resume: int, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 10, 20, 20, 30)  # an evaluation shares its step with a training line
    before = path.read_bytes()
    write(path, resume_step=resume)
    assert [line["step"] for line in read(path)] == kept
    assert before.startswith(path.read_bytes())
    write(path, 40, resume_step=resume)
    assert [line["step"] for line in read(path)] == [*kept, 40]


def test_a_half_written_last_line_is_removed_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 10, 20)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        write(path, 20, resume_step=20)
        assert path.read_bytes() == whole, cut


@pytest.mark.parametrize("junk", [b"\0\0\0\0\n", b"\xff\xfe{\n", b"[1]\n", b"null\n", b"{}\n", b"\n", b"7\n"])
def test_lines_that_are_no_figures_are_removed(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 10)
    path.write_bytes(path.read_bytes() + junk)
    write(path, 20, resume_step=10)
    assert [line["step"] for line in read(path)] == [10, 20]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_one_line_that_says_how_to_resume(tmp_path: Path) -> None:
    writer = JsonLinesWriter(tmp_path / "metrics.jsonl")
    writer._file.close()
    writer._file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115  the writer closes it
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written \(No space left.* to resume"):
        writer.write(1, metrics={"train/loss": 1.0})
    writer.close()  # tries nothing again


def test_metrics_are_always_written(tmp_path: Path) -> None:
    writers = make_writers(tmp_path, config=LogConfig(), run_config={}, resume_step=0)
    for writer in writers:
        writer.write(1, metrics={"eval/loss": 2.0})
        writer.close()
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1, "eval/loss": 2.0}]


@pytest.mark.parametrize(("field", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_extra_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"config\.log\.{field}: .*pip install 'bert_jax\[{field}\]'"):
        make_writers(tmp_path, config=LogConfig(**{field: True}), run_config={}, resume_step=0)


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the service, which needs an account."""
    calls: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []
    run = types.SimpleNamespace(log=lambda figures, step: logged.append((step, figures)), finish=lambda: None)
    service: Any = types.ModuleType("wandb")
    service.util = types.SimpleNamespace(generate_id=lambda: f"id{len(calls)}")
    service.init = lambda **options: calls.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", service)
    for step in (1, 2):
        writers = make_writers(tmp_path, config=LogConfig(wandb=True), run_config={"seed": 3}, resume_step=step - 1)
        for writer in writers:
            writer.write(step, metrics={"train/loss": 1.0, "perf/mfu": None})
            writer.close()
    assert [(call["id"], call["resume"], call["config"]) for call in calls] == [("id0", "allow", {"seed": 3})] * 2
    assert logged == [(1, {"train/loss": 1.0}), (2, {"train/loss": 1.0})]


def test_tensorboard_gets_what_is_finite(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="needs the tensorboard extra: pip install -e '.[tensorboard]'")
    writer = TensorBoardWriter(tmp_path / "tb", resume_step=5)
    writer.write(6, metrics={"train/loss": 1.0, "perf/mfu": None})
    writer.close()
    events = b"".join(file.read_bytes() for file in (tmp_path / "tb").iterdir())
    assert b"train/loss" in events
    assert b"perf/mfu" not in events
