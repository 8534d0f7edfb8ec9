"""Keep the main job's promises: it trains, resumes bit for bit, and says in one line what is wrong."""

import fcntl
import re
import signal
import subprocess
from pathlib import Path

import pytest

from bert_jax.runs.checkpoint import Checkpointer
from tests.documented import undescribed_metrics
from tests.rounding import sum_bound
from tests.runs import ROOT, checksums, environment, figures, run, train_command

STEPS = ("train.num_steps=12", "checkpoint.every=4", "eval.every=4", "log.every=3")


@pytest.fixture(scope="module")
def undisturbed(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed")
    done = run(train_command(workdir, *STEPS, data=tiny_dataset))
    assert done.returncode == 0, done.stderr
    assert "finished: 12 steps" in done.stdout
    assert "word frequencies" in done.stdout
    assert re.search(
        r"finetune --config=\S+ --init=\S+ --data_dir=FILE\.csv --config\.data\.dev_fraction=", done.stdout
    )
    return workdir


def test_metrics_have_the_promised_names(undisturbed: Path):
    lines = (undisturbed / "metrics.jsonl").read_text()
    for name in ("loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy", "learning_rate", "grad_norm"):
        assert f'"train/{name}"' in lines
    for name in ("loss", "mlm_loss", "mlm_accuracy", "mlm_perplexity", "bits_per_byte", "nsp_accuracy", "unigram_loss"):
        assert f'"eval/{name}"' in lines
    for name in ("step_seconds", "sequences_per_second", "tokens_per_second", "mfu", "data_wait_fraction"):
        assert f'"perf/{name}"' in lines


def test_every_metric_written_is_described_in_the_docs(undisturbed: Path):
    assert undescribed_metrics(undisturbed / "metrics.jsonl") == set()


def test_a_finished_run_says_so_and_changes_nothing(undisturbed: Path, tiny_dataset: Path):
    before = (undisturbed / "metrics.jsonl").read_bytes()
    again = run(train_command(undisturbed, *STEPS, data=tiny_dataset))
    assert again.returncode == 0
    assert "already finished" in again.stdout
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


def _kill_behind_step(command: list[str], *, step: int, number: signal.Signals) -> tuple[int, str]:
    """Start the run, send the signal once its log has passed `step`, and return status and output."""
    seen = []
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            seen.append(line)
            if line.startswith(f"step {step}/"):
                process.send_signal(number)
        return process.wait(timeout=120), "".join(seen)


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGKILL, -9, id="kill"),
        pytest.param(signal.SIGTERM, 75, id="term", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, id="int", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_ends_bit_equal_to_the_undisturbed_one(
    undisturbed: Path, tiny_dataset: Path, tmp_path: Path, number: signal.Signals, status: int
):
    command = train_command(tmp_path / "run", *STEPS, data=tiny_dataset)
    code, output = _kill_behind_step(command, step=3, number=number)
    assert code == status, output
    if status > 0:
        assert "stopping after this step" in output
        assert "resumes there" in output
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert checksums(tmp_path / "run") == checksums(undisturbed)
    assert figures(tmp_path / "run") == figures(undisturbed)


@pytest.mark.slow
@pytest.mark.numerics
def test_another_mesh_gives_the_same_losses(undisturbed: Path, tiny_dataset: Path, tmp_path: Path):
    done = run(train_command(tmp_path, *STEPS, "mesh.fsdp=2", "mesh.tensor=2", data=tiny_dataset), devices=8)
    assert done.returncode == 0, done.stderr
    # A gradient is a sum over 16 rows of 32 tokens, in another order on another mesh; 12 steps add up.
    apart = 12 * sum_bound(16 * 32)
    for mine, theirs in zip(figures(tmp_path), figures(undisturbed), strict=True):
        assert mine == pytest.approx(theirs, rel=apart, abs=apart)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.hiden_size=3", "did you mean config.model.hidden_size"),
        ("train.batch_size=many", "train.batch_size"),
        ("model.num_attention_heads=5", "does not divide"),
        ("train.phases[0].max_seq_length=256", "position table"),
        ("model.vocab_size=100", "set --config.model.vocab_size=512"),
        ("data.do_lower_case=False", "--config.data.do_lower_case=True"),
        ("data.objective=mlm", "--config.data.objective=mlm+nsp"),
        ("data.directory=nowhere", "does not exist"),
        ("train.phases[0].max_seq_length=48", "only of 32, 64"),
        ("mesh.data=3", "does not make 1 devices"),
    ],
)
def test_bad_input_is_one_line_that_names_the_field(tiny_dataset: Path, tmp_path: Path, override: str, says: str):
    done = run(train_command(tmp_path, *STEPS, f"data.directory={tiny_dataset}", override))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_two_runs_are_kept_apart(tiny_dataset: Path, tmp_path: Path):
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run(train_command(tmp_path, *STEPS, data=tiny_dataset))
    assert done.returncode == 2
    assert "another process trains in it" in done.stderr
    assert not (tmp_path / "checkpoints").exists()


def test_a_workdir_of_another_config_is_refused(undisturbed: Path, tiny_dataset: Path):
    done = run(train_command(undisturbed, *STEPS, "optimizer.learning_rate=0.5", data=tiny_dataset))
    assert done.returncode == 2
    assert "config.optimizer.learning_rate was 0.003, is 0.5" in done.stderr


def test_a_config_can_be_mended_until_there_is_a_checkpoint(tiny_dataset: Path, tmp_path: Path):
    wrong = run(train_command(tmp_path, *STEPS, "optimizer.warmup_steps=99", data=tiny_dataset))
    assert wrong.returncode == 2
    assert "warmup_steps=99" in wrong.stderr
    mended = run(train_command(tmp_path, *STEPS, "train.num_steps=2", "log.every=1", data=tiny_dataset))
    assert mended.returncode == 0, mended.stderr


@pytest.mark.slow
def test_without_held_out_rows_training_goes_on_unevaluated(tmp_path: Path):
    (tmp_path / "texts").mkdir()
    for number in range(4):
        line = " ".join(f"word{(number * 7 + item) % 40} goes home." for item in range(400))
        (tmp_path / "texts" / f"{number}.txt").write_text(line)
    source = (f"data.input={tmp_path / 'texts'}", "data.heldout_fraction=0.0", "model.vocab_size=100")
    # The workdir lies among the texts, which is no reason to read its files as text.
    command = train_command(tmp_path / "texts" / "run", *STEPS, *source, "train.num_steps=4")
    for says in ("finished: 4 steps", "already finished"):
        done = run(command)
        assert done.returncode == 0, done.stderr
        assert says in done.stdout
    assert not any("eval/mlm_loss" in line for line in figures(tmp_path / "texts" / "run"))
    for number in range(4):
        (tmp_path / "texts" / f"{number}.txt").unlink()
    gone = run(command)
    assert gone.returncode == 2
    assert "--config.data.directory=" in gone.stderr


def test_figures_that_cannot_be_written_are_one_line(tiny_dataset: Path, tmp_path: Path):
    (tmp_path / "metrics.jsonl").mkdir()
    done = run(train_command(tmp_path, *STEPS, data=tiny_dataset))
    assert done.returncode == 2
    assert "metrics.jsonl cannot be written (Is a directory)" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_infinite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tiny_dataset: Path, tmp_path: Path):
    override = ("optimizer.learning_rate=1e30", "optimizer.max_grad_norm=1e30", "checkpoint.every=1")
    done = run(train_command(tmp_path, *STEPS, *override, data=tiny_dataset))
    assert done.returncode == 2
    assert "not finite at step" in done.stderr
    assert "first bad parameter group" in done.stderr
    kept = re.search(r"the last checkpoint is of step (\d+)", done.stderr)
    assert kept, done.stderr
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    assert checkpointer.steps()[-1] == int(kept.group(1))
    assert checkpointer.metadata(int(kept.group(1)))["checksums"]
    checkpointer.close()


def test_training_goes_on_from_a_source_on_its_vocabulary(undisturbed: Path, tiny_dataset: Path, tmp_path: Path):
    steps = [*STEPS, "model.hidden_size=128", "seed=7", "optimizer.learning_rate=1e-6"]  # the SOURCE gives the shape
    begin = [*train_command(tmp_path / "more", *steps, data=tiny_dataset), f"--init={undisturbed}"]
    begin = [arg for arg in begin if "initializer_range" not in arg]
    done = run(begin)
    assert done.returncode == 0, done.stderr
    assert "hidden_size=32" in done.stdout
    assert "held-out perplexity before (step 0)" in done.stdout
    first = next(line for line in figures(tmp_path / "more") if "eval/mlm_loss" in line)
    last = [line for line in figures(undisturbed) if "eval/mlm_loss" in line][-1]
    assert first["step"] == 0
    # Other masks (another seed) on the same rows: near the SOURCE's loss, where fresh parameters have that of chance.
    assert abs(first["eval/mlm_loss"] - last["eval/mlm_loss"]) < 0.15
    again = run(begin)
    assert again.returncode == 0
    assert "already finished" in again.stdout


def test_a_source_that_is_not_there_is_one_line(tiny_dataset: Path, tmp_path: Path):
    done = run([*train_command(tmp_path, *STEPS, data=tiny_dataset), f"--init={tmp_path / 'nothing'}"])
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr
