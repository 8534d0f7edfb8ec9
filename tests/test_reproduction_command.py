"""The reproduce command: what it says before it runs, and a whole table that is killed, resumed and shared."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.reproduction_scale import write_all
from tests.runs import ROOT, environment, run

SCALE = "--scale=tests/reproduction_scale.py"
LIMIT = 1200  # seconds


def command(folder: Path, *flags: str) -> list[str]:
    """Return the command on the data and in the workdir of `folder`."""
    own = (SCALE, f"--data_dir={folder / 'data'}", f"--workdir={folder / 'w'}", *flags)
    return [sys.executable, "-m", "bert_jax.reproduce", *own]


def test_a_dry_run_lists_runs_and_what_is_missing_and_writes_nothing(tmp_path: Path):
    write_all(tmp_path / "data")
    done = run(command(tmp_path, "--table=5", "--dry_run"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"Table 5, ablation over the pre-training tasks: \d+ runs", lines[0])
    assert any(
        re.match(r"  \w{12}  open +pre-train BERT-Base \(unknown until a run is measured\)", line) for line in lines
    )
    assert any(
        "missing: BERT-Base" in line and "the scale reproduction_scale has no task qnli" in line for line in lines
    )
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--table is missing: type for example --table=5"),
        (("--table=12",), "--table=12: choose from 1, 2"),
        (("--table=5", "--topology=v5e:4x4"), "--topology is for --dry_run"),
        (("--table=5", "--seeds=-1"), "--seeds"),
    ],
)
def test_a_wrong_flag_is_one_line(flags: tuple[str, ...], message: str, tmp_path: Path):
    done = run(command(tmp_path, *flags))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.soak
def test_a_killed_table_resumes_and_a_figure_shares_its_models(tmp_path: Path):
    write_all(tmp_path / "data")
    first = command(tmp_path, "--table=5")
    with subprocess.Popen(first, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + LIMIT
        while not list((tmp_path / "w").glob("runs/*/checkpoints/4")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    again = run(first, timeout=LIMIT)
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    assert "resuming at step" in again.stdout
    record = json.loads((tmp_path / "w" / "table_5.json").read_text())
    entry = record["rows"][0]["cells"]["mrpc"]
    assert (entry["state"], len(entry["values"]), entry["paper"]) == ("done", 2, 86.7)
    assert "<svg" in (tmp_path / "w" / "tables.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "w").glob("runs/*/done.json")}
    figure = run(command(tmp_path, "--table=figure5"), timeout=LIMIT)
    assert figure.returncode == 0, figure.stdout[-2000:] + figure.stderr[-2000:]
    assert "fine-tune sst2 from BERT-Base at step 8" in figure.stdout
    assert "== Figure 5, run 1 of 1" in figure.stdout or "pre-train BERT-Base;" not in figure.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run(first, timeout=LIMIT).stdout.startswith("Table 5: ")
