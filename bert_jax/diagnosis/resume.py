"""Check `resume`: a run killed by SIGKILL and started again equals the run that was never killed, bit by bit.

Runs are processes of their own, so this check comes before the command takes the devices.
"""

import random
import time
from pathlib import Path

from bert_jax.diagnosis import children, run_configs
from bert_jax.diagnosis.results import CheckResult, Context, failed, ok, skipped
from bert_jax.files import write_text
from bert_jax.json_files import load_json, read_log

_POLL_SECONDS = 0.005
_DOCUMENTS, _SENTENCES = 60, 20


def check(context: Context) -> CheckResult:
    """Train, kill, resume and compare.

    Raises:
      ChildFailed: if a run ends with an error.
    """
    if context.hosts.count > 1:
        return skipped("several hosts: kill the processes of a real run and start them again instead")
    folder = context.workdir / "resume"
    folder.mkdir()
    write_text(folder / "text.txt", sample_text())
    whole, killed = folder / "whole", folder / "killed"
    log = folder / "runs.log"
    start = time.monotonic()
    children.run(train_command(whole, folder / "text.txt"), log=log, seconds=context.seconds_left())
    seconds = time.monotonic() - start
    at = kill_after_a_checkpoint(
        train_command(killed, folder / "text.txt"), workdir=killed, log=log, seconds=context.seconds_left()
    )
    if at is None or at >= run_configs.RESUMED_STEPS:
        return skipped("the run ended before it could be killed")
    children.run(train_command(killed, folder / "text.txt"), log=log, seconds=context.seconds_left())
    return compare(killed, whole, at=at, seconds=seconds)


def compare(killed: Path, whole: Path, *, at: int, seconds: float) -> CheckResult:
    """Return whether metrics and final state of two runs are equal; one was killed after checkpoint `at`."""
    metrics, expected = metrics_of(killed), metrics_of(whole)
    sums, expected_sums = checksums_of(killed), checksums_of(whole)
    arrays = [name for name, value in expected_sums.items() if sums.get(name) != value]
    pairs = zip(metrics, expected, strict=False)
    lines = [line for line, other in pairs if line != other]
    if not arrays and not lines and len(metrics) == len(expected):
        steps = max(line["step"] for line in expected)
        return ok(
            f"killed after step {at} of {steps:g}, resumed: bit-equal",
            [
                f"SIGKILL after the checkpoint of step {at} of {steps:g}; the undisturbed run took {seconds:.0f} s",
                f"equal: {len(expected)} lines of metrics, checksums of {len(expected_sums)} arrays of the final state",
            ],
        )
    if lines:
        step = lines[0].get("step", 0)
        early = "before the kill: this device does not compute the same twice" if step <= at else "after the kill"
        return failed(f"metrics differ from step {step:g} on, {early} (killed after step {at})")
    if arrays:
        return failed(f"{len(arrays)} of {len(expected_sums)} arrays differ at the end, the first is {arrays[0]}")
    return failed(f"{len(metrics)} lines of metrics where the undisturbed run has {len(expected)}")


def train_command(workdir: Path, text: Path) -> list[str]:
    """Return the arguments of `python -m` for the run."""
    config = f"{Path(run_configs.__file__)}:resume"
    return ["bert_jax.train", f"--config={config}", f"--config.data.input={text}", f"--workdir={workdir}"]


def kill_after_a_checkpoint(arguments: list[str], *, workdir: Path, log: Path, seconds: float) -> int | None:
    """Kill the run once a checkpoint is whole; return that one's step, None if the run had ended by then.

    Raises:
      ChildFailed: if it ends with an error, or takes longer than `seconds`.
    """
    deadline = time.monotonic() + seconds
    with children.running(arguments, log=log) as process:
        while not checkpoint_steps(workdir):
            if process.poll() is not None:
                raise children.ChildFailed(f"the run ended with status {process.returncode}: {children.last_line(log)}")
            if time.monotonic() > deadline:
                raise children.ChildFailed(f"the run saved no checkpoint within the {seconds:.0f} s that were left")
            time.sleep(_POLL_SECONDS)
        process.kill()
        ended = process.wait() == 0
    return None if ended else max(checkpoint_steps(workdir))


def checkpoint_steps(workdir: Path) -> list[int]:
    """Return the steps whose checkpoints are whole."""
    return [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]


def metrics_of(workdir: Path) -> list[dict[str, float]]:
    """Return metrics.jsonl without `perf/`, which no two runs share."""
    lines = read_log(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith("perf/")} for line in lines]


def checksums_of(workdir: Path) -> dict[str, int]:
    """Return the checksum of every array of the newest checkpoint."""
    newest = max(checkpoint_steps(workdir))
    return load_json(workdir / "checkpoints" / str(newest) / "metadata" / "metadata")["checksums"]


def sample_text() -> str:
    """Return documents of random words, the same on every machine."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrst", k=rng.randint(2, 8))) for _ in range(300)]
    documents = [
        "\n".join(" ".join(rng.choices(words, k=rng.randint(5, 15))).capitalize() + "." for _ in range(_SENTENCES))
        for _ in range(_DOCUMENTS)
    ]
    return "\n\n".join(documents) + "\n"
