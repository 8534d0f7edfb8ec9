"""`bert-jax doctor`: what is wrong is reported as failed and by the exit status, whatever else crashes."""

import functools
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.diagnosis import (
    children,
    collectives,
    devices,
    examination,
    kernels,
    report,
    resume,
    rounding,
    training_step,
)
from bert_jax.diagnosis.examination import CHECKS, Check
from bert_jax.diagnosis.results import CheckResult, Context, Verdict, failed, ok, skipped
from bert_jax.errors import UserError
from bert_jax.model import attention
from bert_jax.parallel import collectives as on_devices
from bert_jax.parallel.distributed import Hosts
from bert_jax.planning.topology import parse_topology
from tests.runs import ROOT, run


def make_check(name: str, run: Callable[[Context], CheckResult]) -> Check:
    return Check(name, f"what {name} is for", run, seconds=1)


def raising(error: BaseException) -> Callable[[Context], CheckResult]:
    def run(context: Context) -> CheckResult:
        del context
        raise error

    return run


def examine(*checks: Check, tmp_path: Path, seconds: float = 600, out: str = "") -> int:
    return examination.examine_and_report(checks, hosts=Hosts(), workdir=tmp_path, seconds=seconds, out=out)


def test_a_check_that_raises_is_a_line_and_the_others_still_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checks = (
        make_check("first", raising(RuntimeError("the device\nis gone"))),
        make_check("second", raising(UserError("hosts differ: install the same"))),
        make_check("third", lambda context: ok("all right", ["a detail"])),
        make_check("fourth", lambda context: skipped("one device")),
    )
    out = tmp_path / "block.md"
    assert examine(*checks, tmp_path=tmp_path, out=str(out)) == 1
    captured = capsys.readouterr()
    assert captured.out == out.read_text()
    lines = captured.out.splitlines()
    assert (lines[0], lines[-1]) == ("```text", "```")
    assert "2 FAILED" in lines[1]
    assert "first   FAILED: the check crashed: RuntimeError: the device is gone" in lines
    assert "second  FAILED: hosts differ: install the same" in lines
    assert "third   ok: all right" in lines
    assert "fourth  skipped: one device" in lines
    assert lines[lines.index("third:") + 1] == "  a detail"
    assert "Traceback" not in captured.out + captured.err
    assert "[1/4] first: what first is for" in captured.err


def test_nothing_failed_is_status_0_also_where_checks_are_skipped(tmp_path: Path):
    checks = (make_check("one", lambda context: ok("fine")), make_check("two", lambda context: skipped("no device")))
    assert examine(*checks, tmp_path=tmp_path) == 0


def test_after_the_time_is_used_up_checks_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert examine(make_check("late", raising(AssertionError("it ran"))), tmp_path=tmp_path, seconds=0) == 0
    assert "late  skipped: the time of --seconds is used up" in capsys.readouterr().out


def test_ctrl_c_leaves_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checks = (
        make_check("done", lambda context: ok("fine")),
        make_check("endless", raising(KeyboardInterrupt())),
        make_check("never", lambda context: ok("it ran")),
    )
    assert examine(*checks, tmp_path=tmp_path) == examination.INTERRUPTED
    block = capsys.readouterr().out
    assert "done     ok: fine" in block
    assert "endless  skipped: interrupted" in block
    assert "it ran" not in block


def test_a_report_has_every_check_and_fits_a_terminal():
    long = "word " * 40 + "x" * 100
    results = {check.name: failed(long, [long, "short"]) for check in CHECKS}
    lines = report.as_block(results, when="today", took="1 min").splitlines()
    assert max(map(len, lines)) <= report.WIDTH
    for check in CHECKS:
        assert any(line.startswith(f"{check.name} ") and "FAILED" in line for line in lines)
        assert f"{check.name}:" in lines


def test_checks_are_chosen_by_name_and_run_in_the_order_of_the_table():
    assert [check.name for check in examination.choose(["step", "versions"])] == ["versions", "step"]
    assert examination.choose([]) == list(CHECKS)
    with pytest.raises(UserError, match="--checks=kernel: choose from versions, resume"):
        examination.choose(["kernel"])


def test_runs_in_processes_of_their_own_come_before_the_devices_are_taken():
    names = [check.name for check in CHECKS]
    assert names.index("resume") < min(names.index(name) for name in ("devices", "kernels", "step", "collectives"))


def test_the_command_prints_one_block(tmp_path: Path):
    done = run([sys.executable, "-m", "bert_jax.doctor", "--checks=versions,devices", f"--out={tmp_path / 'out.md'}"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "out.md").read_text()
    assert f"jax {jax.__version__}" in done.stdout
    assert "1 x cpu, 1 host" in done.stdout
    wrong = run([sys.executable, "-m", "bert_jax.doctor", "--workdir=/nowhere"])
    assert (wrong.returncode, len(wrong.stderr.strip().splitlines())) == (2, 1)


# Kernels, interpreted


def norm(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> CheckResult:
    case = functools.partial(kernels.compare_norm, 128, batch=1, length=64, platform="cpu")
    monkeypatch.setattr(kernels, "cases", lambda platform: [case])
    for name, value in changes.items():
        monkeypatch.setattr(kernels, name, value)
    return kernels.check(Context(Hosts(), Path(), 0.0))


def test_a_norm_that_is_right_is_within_its_bound_and_one_off_by_two_percent_failed(monkeypatch: pytest.MonkeyPatch):
    right = kernels.fused_residual_norm
    assert norm(monkeypatch).verdict is Verdict.OK

    def off(*arguments: Any, **rest: Any) -> jax.Array:
        return (right(*arguments, **rest) * 1.02).astype(jnp.bfloat16)

    result = norm(monkeypatch, fused_residual_norm=off)
    assert result.verdict is Verdict.FAILED
    assert "what rounding allows" in result.summary


def attention_check() -> kernels.Comparison:
    return kernels.compare_attention(128, batch=1, heads=2, packed=True, platform="cpu")


@pytest.mark.slow
def test_attention_that_is_right_passes_and_one_that_drops_others_fails(monkeypatch: pytest.MonkeyPatch):
    right = attention.fused_attention
    assert not attention_check().wrong
    jax.clear_caches()  # jax keeps what it traced of a kernel by the function that chooses it
    monkeypatch.setattr(
        attention, "fused_attention", lambda *a, seeds, **rest: right(*a, seeds=seeds.at[0].add(1), **rest)
    )
    # What the bound alone might not show is compared exactly.
    monkeypatch.setattr(rounding, "worst", lambda actual, **rest: [0.0] * len(actual))
    assert "probabilities dropped otherwise" in attention_check().wrong


def test_the_bounds_of_attention_show_an_error_of_five_percent_in_the_output_and_gradients():
    keys, tokens = jax.random.split(jax.random.key(0), 7), (1, 64, 2, 64)
    shapes = [tokens, tokens[2:]] * 3 + [tokens]
    scales = [0.5, 0.5, 0.5, 0.5, 1, 1, 1]
    *arrays, d_out = (s * jax.random.normal(k, shape) for s, k, shape in zip(scales, keys, shapes, strict=True))
    place = jnp.arange(64)[None]
    mask = attention.AttentionMask(jnp.ones_like(place), place, direction="bidirectional")

    def plain(*values: jax.Array) -> jax.Array:
        q, k, v = (attention.Projected(values[number], values[number + 1]) for number in (0, 2, 4))
        rest: dict[str, Any] = {"dropout": None, "rate": 0.0, "site": 1, "implementation": "reference"}
        return attention.attend(q, key=k, value=v, mask=mask, **rest)

    out, pull = jax.vjp(plain, *arrays)
    expected = [np.asarray(array) for array in (out, *pull(d_out))]
    bounds = rounding.attention_bounds([*arrays, d_out], expected=expected, allowed=np.asarray(mask.dense()), rate=0.0)
    off = rounding.worst([1.05 * array for array in expected], expected=expected, bounds=bounds)
    assert min(off[0], off[1], off[5]) > 1  # the output, and the gradients of queries and values
    narrow = [array.astype(jnp.bfloat16).astype(np.float32) for array in expected]
    assert max(rounding.worst(narrow, expected=expected, bounds=bounds)) <= 1
    nothing = rounding.worst([array * np.nan for array in expected], expected=expected, bounds=bounds)
    assert min(nothing) == np.inf


# Killed and resumed runs


def make_run(folder: Path, *, losses: list[float], checksum: int = 7) -> Path:
    record = folder / "checkpoints" / "40" / "metadata"
    record.mkdir(parents=True)
    (record / "metadata").write_text(json.dumps({"checksums": {"params/a": checksum, "params/b": 2}}))
    lines = [{"step": 10 * (n + 1), "train/loss": loss, "perf/x": n * checksum} for n, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("losses", "checksum", "verdict", "words"),
    [
        ([5.0, 4.0, 3.0, 2.0], 7, Verdict.OK, "bit-equal"),
        ([5.0, 4.0, 3.0, 2.5], 7, Verdict.FAILED, "from step 40 on, after the kill"),
        ([5.5, 4.0, 3.0, 2.0], 7, Verdict.FAILED, "does not compute the same twice"),
        ([5.0, 4.0, 3.0, 2.0], 8, Verdict.FAILED, "1 of 2 arrays differ at the end, the first is params/a"),
        ([5.0, 4.0, 3.0], 7, Verdict.FAILED, "3 lines of metrics where the undisturbed run has 4"),
    ],
)
def test_runs_that_differ_are_reported(
    tmp_path: Path, losses: list[float], checksum: int, verdict: Verdict, words: str
):
    whole = make_run(tmp_path / "whole", losses=[5.0, 4.0, 3.0, 2.0])
    killed = make_run(tmp_path / "killed", losses=losses, checksum=checksum)
    result = resume.compare(killed, whole, at=10, seconds=1.0)
    assert result.verdict is verdict
    assert words in result.summary


@pytest.mark.parametrize(
    ("ending", "expected"),
    [("time.sleep(60)", 10), ("raise SystemExit(0)", 10), ("raise SystemExit('no\\ndisk')", None)],
)
def test_a_run_is_killed_once_a_checkpoint_is_whole(
    tmp_path: Path, ending: str, expected: int | None, monkeypatch: pytest.MonkeyPatch
):
    lines = ["import pathlib, sys, time", f"{ending}" if expected is None else ""]
    lines += ["pathlib.Path(sys.argv[1], 'checkpoints', '10').mkdir(parents=True)", ending]
    (tmp_path / "pretended_run.py").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    kill = functools.partial(
        resume.kill_after_a_checkpoint,
        ["pretended_run", str(tmp_path)],
        workdir=tmp_path,
        log=tmp_path / "log",
        seconds=60,
    )
    if expected is None:
        with pytest.raises(children.ChildFailed, match="status 1: disk"):
            kill()
    else:
        assert kill() in (10, None)  # None: that run may have ended before it was killed
        assert resume.checkpoint_steps(tmp_path) == [10]


def test_the_text_of_the_runs_is_the_same_everywhere():
    assert resume.sample_text() == resume.sample_text()
    assert len(resume.sample_text()) > 50_000


# Devices and collectives


def tpus(*, x: int, y: int, kind: str = "TPU v5 lite") -> list[Any]:
    places = [(i, j, 0) for j in range(y) for i in range(x)]
    return [types.SimpleNamespace(device_kind=kind, coords=place, slice_index=0) for place in places]


def test_a_slice_is_known_by_the_coordinates_of_its_chips():
    assert devices.topology_of(tpus(x=2, y=4)) == parse_topology("v5e:2x4")
    assert devices.topology_of(tpus(x=2, y=4, kind="TPU v6 lite")) == parse_topology("v6e:2x4")
    assert devices.topology_of(tpus(x=2, y=4)[:-1]) is None
    assert devices.topology_of(tpus(x=2, y=2, kind="TPU7x")) is None
    assert devices.topology_of(jax.devices()) is None


@pytest.mark.parametrize("kind", on_devices.KINDS)
def test_collectives_add_up_and_a_wrong_one_is_noticed(kind: str, monkeypatch: pytest.MonkeyPatch):
    made = on_devices.Collectives(jax.devices(), elements=1000)
    operand = made.operand(kind)
    assert made.is_right(kind, operand)
    result = np.asarray(made.run(kind)(operand))
    whole = np.asarray(operand)
    count = jax.device_count()
    expected = {
        "all-gather": np.tile(whole, count),
        "reduce-scatter": whole.reshape(count, -1).sum(0),
        "all-reduce": np.tile(whole.reshape(count, -1).sum(0), count),
    }[kind]
    np.testing.assert_array_equal(result, expected)
    right = on_devices._collective
    monkeypatch.setattr(on_devices, "_collective", lambda kind, local: jnp.roll(right(kind, local), 1))  # the same sum
    assert not made.is_right(kind, operand)


def test_wrong_sums_fail_the_check(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(collectives, "_ELEMENTS", {"cpu": 1000})
    context = Context(Hosts(), Path(), 0.0)
    assert collectives.check(context).verdict is Verdict.OK
    monkeypatch.setattr(on_devices.Collectives, "is_right", lambda self, kind, operand: kind != "all-reduce")
    result = collectives.check(context)
    assert (result.verdict, result.summary) == (Verdict.FAILED, "all-reduce over 8 devices: sums are wrong")


# The measured step


def describe(**changes: Any) -> CheckResult:
    from bert_jax.config import from_config_dict
    from bert_jax.diagnosis import run_configs
    from bert_jax.parallel import mesh as meshes
    from bert_jax.pretrain.program import PretrainingProgram

    config = from_config_dict(run_configs.get_config(f"step,cpu,{jax.device_count()}"))
    program = PretrainingProgram(config, mesh=meshes.make_mesh(config.mesh))
    measured: dict[str, Any] = {
        "seconds": 0.5,
        "rounds": (0.4, 0.5, 0.6),
        "first_seconds": 9.0,
        "loss": 7.5,
        "peak_bytes": 2**30,
    }
    projection = {"step_seconds": 0.25, "sequences_per_second": 1.0, "mfu": 0.5, "hbm": {"total_bytes": 2**31}}
    return training_step.describe(
        config,
        program=program,
        measured=training_step.Measured(**(measured | changes)),
        projection=projection,
        reason="",
    )


def test_a_step_is_compared_with_its_projection_and_fails_only_for_what_is_wrong():
    slow = describe()
    assert slow.verdict is Verdict.OK
    assert slow.summary == "500.0 ms, 64 sequences/s, MFU unknown, 2.00 times the projected time"
    assert any("plan projects 250.00 ms" in line for line in slow.details)
    assert describe(loss=float("nan")).verdict is Verdict.FAILED


def test_devices_that_plan_cannot_compile_for_have_no_projection(tmp_path: Path):
    projection, reason = training_step.project(Context(Hosts(), tmp_path, 0.0))
    assert projection is None
    assert reason == "plan compiles for whole slices of TPUs, not for 8 x cpu"


def test_the_projection_has_all_the_time_that_is_left_and_a_line_says_how_to_give_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training_step, "topology_of", lambda devices: parse_topology("v5e:2x4"))
    limits = []

    def run(arguments: list[str], *, log: Path, seconds: float, environment: dict[str, str]) -> None:
        limits.append(seconds)
        raise children.ChildFailed("x")

    monkeypatch.setattr(children, "run", run)
    assert training_step.project(Context(Hosts(), tmp_path, time.monotonic() + 1000)) == (None, "x")
    assert limits == [pytest.approx(1000, abs=60)]
    assert CHECKS[-1].name == "step"  # no later check needs the time


def test_the_configs_of_the_checks_are_files_that_commands_read():
    file = ROOT / "bert_jax" / "diagnosis" / "run_configs.py"
    command = [sys.executable, "-m", "bert_jax.train", f"--config={file}:resume", "--dry_run"]
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert "mesh: data=1" in done.stdout


def test_a_check_that_failed_on_another_host_has_failed():
    def as_host(index: int, failing: set[int]) -> CheckResult:
        results = [failed(f"no chip {n}") if n in failing else ok("fine", ["detail"]) for n in range(3)]
        told = [json.dumps([result.verdict.value, result.summary]) for result in results]
        hosts = Hosts(index, ("a", "b", "c"))
        object.__setattr__(hosts, "exchange", lambda topic, value: told)
        context = Context(hosts, Path(), 0.0)
        return examination.of_all_hosts("devices", results[index], context)

    assert as_host(0, set()) == ok("fine", ["detail"])
    assert as_host(0, {1, 2}) == failed("host 1 (b): no chip 1", ["detail", "host 2 (c): no chip 2"])
    assert as_host(0, {0, 1}) == failed("no chip 0", ["host 1 (b): no chip 1"])


def test_a_crash_over_all_hosts_ends_the_command_with_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Hosts, "from_main", lambda self, topic, value: value())
    check = Check("step", "a step", raising(RuntimeError("out of memory")), seconds=1, spans_hosts=True)
    with pytest.raises(UserError, match="out of memory"):
        examination.examine_and_report([check], hosts=Hosts(0, ("a", "b")), workdir=tmp_path, seconds=60)
    assert "step  FAILED: the check crashed: RuntimeError: out of memory" in capsys.readouterr().out
