"""The command distills, resumes bit for bit with the same teacher only, and says in one line what is wrong."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from source_helpers import minilm

from bert_jax.convert.loading import load_pretrained
from bert_jax.data.dataset_info import load_dataset_info
from bert_jax.data.tokenization import WordPieceTokenizer
from bert_jax.data.vocabulary import SPECIAL_PIECES, Vocabulary
from bert_jax.pretrain.dataset import open_tokenizer
from tests.documented import undescribed_metrics
from tests.runs import TINY, checksums, figures, run, train_command
from tests.teachers import write_teacher

STEPS = ("train.num_steps=8", "checkpoint.every=4", "eval.every=4", "log.every=2")
# Beyond TINY, whose student has half the teacher's width; the data set has pairs.
OWN = ("model.num_hidden_layers=2", "data.objective=mlm+nsp", "data.pack=False", "model.max_position_embeddings=64")


def distill_command(workdir: Path, *overrides: str, teacher: Path | str, data: Path | None = None) -> list[str]:
    """Return the command of a tiny student; later overrides win."""
    numbers = ("optimizer.learning_rate=3e-3", "distill.relation_heads=8", "model.dtype=float32")
    source = [f"data.directory={data}"] if data else ["data.input=embedded"]
    fields = [*TINY, *OWN, *numbers, *STEPS, *source, *overrides]
    start = [sys.executable, "-m", "bert_jax.distill", "--config=configs/distill_minilm.py"]
    return [*start, f"--teacher={teacher}", f"--workdir={workdir}", *(f"--config.{field}" for field in fields)]


@pytest.fixture(scope="module")
def teacher(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a teacher with the vocabulary of the tiny data set."""
    tokenizer = open_tokenizer(load_dataset_info(tiny_dataset, max_seq_length=32))
    return write_teacher(tmp_path_factory.mktemp("teacher") / "model", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def undisturbed(teacher: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("distilled") / "run"
    done = run(distill_command(workdir, teacher=teacher, data=tiny_dataset))
    assert done.returncode == 0, done.stderr
    assert f"learning from {teacher} (bert, width 64): the relations of layer 3" in done.stdout
    assert "held-out relation loss before (step 0)" in done.stdout
    assert "fill_mask" not in done.stdout  # nothing trained that head
    return workdir


def test_every_metric_of_a_student_is_described_in_the_docs(undisturbed: Path):
    assert undescribed_metrics(undisturbed / "metrics.jsonl") == set()
    last = [line for line in figures(undisturbed) if "eval/relation_loss" in line]
    assert [line["step"] for line in last] == [0, 4, 8]
    assert last[0]["eval/loss"] == last[0]["eval/relation_loss"] > last[-1]["eval/relation_loss"]


def test_a_resumed_run_ends_bit_equal_and_has_its_teacher(
    undisturbed: Path, teacher: Path, tiny_dataset: Path, tmp_path: Path
):
    workdir = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "8")
    moved = Path(shutil.copytree(teacher, tmp_path / "moved"))
    done = run(distill_command(workdir, teacher=moved, data=tiny_dataset))
    assert done.returncode == 0, done.stderr
    assert "resuming at step 4 of 8" in done.stdout
    assert checksums(workdir) == checksums(undisturbed)
    assert figures(workdir) == figures(undisturbed)


def test_another_teacher_and_another_command_are_refused_and_change_nothing(
    undisturbed: Path, teacher: Path, tiny_dataset: Path, tmp_path: Path
):
    tokenizer = open_tokenizer(load_dataset_info(tiny_dataset, max_seq_length=32))
    other = write_teacher(tmp_path / "other", tokenizer=tokenizer, seed=1)
    before = {path: path.read_bytes() for path in undisturbed.glob("*.json*")}
    done = run(distill_command(undisturbed, teacher=other, data=tiny_dataset))
    assert done.returncode == 2
    assert f"--teacher={other}" in done.stderr
    assert f"is not the teacher of the run in {undisturbed}, {teacher} (checksum " in done.stderr
    layer = run(distill_command(undisturbed, "distill.teacher_layer=2", teacher=teacher, data=tiny_dataset))
    assert "config.distill.teacher_layer was 0, is 2" in layer.stderr
    plain = run(train_command(undisturbed, *STEPS, data=tiny_dataset))
    assert plain.returncode == 2
    assert "it is a distillation: resume it with `bert-jax distill`" in plain.stderr
    for refused in (done, layer, plain):
        assert len(refused.stderr.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in undisturbed.glob("*.json*")} == before


def test_a_student_is_a_model_whose_card_names_the_teacher(undisturbed: Path, tmp_path: Path):
    out = tmp_path / "hf"
    done = run([sys.executable, "-m", "bert_jax.export", f"--checkpoint={undisturbed}", f"--out={out}"])
    assert done.returncode == 0, done.stderr
    card = (out / "README.md").read_text()
    assert "| distilled from | model (checksum `" in card
    assert "relations of its layer 3 alone: fine-tune its last layer and heads" in card
    student = load_pretrained(undisturbed)
    assert (student.model.hidden_size, student.untrained) == (32, ("pooler", "masked_lm", "next_sentence"))
    record = json.loads((undisturbed / "teacher.json").read_text())
    assert student.record["teacher"] == record
    assert record["layer"] == 3


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("distill.relation_heads=6", "does not divide config.model.hidden_size=32: set it to 4"),
        ("distill.relation_heads=3 model.hidden_size=48", "=64: set it to 2, or another number that divides"),
        ("distill.teacher_layer=4", "has 3 layers: set it to at most 3"),
        ("model.attention_direction=left_to_right", "set it to bidirectional"),
        ("train.phases[0].max_seq_length=96 model.max_position_embeddings=96", "reads at most 64 tokens"),
        ("data.vocab=tests/golden", "tests/golden"),
    ],
)
def test_what_does_not_suit_the_teacher_is_one_line(
    teacher: Path, tiny_dataset: Path, tmp_path: Path, overrides: str, says: str
):
    done = run(distill_command(tmp_path / "new", *overrides.split(), teacher=teacher, data=tiny_dataset))
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_another_vocabulary_is_one_line_that_names_both(tiny_dataset: Path, tmp_path: Path):
    words = (*SPECIAL_PIECES, *"abcdefghijklmnopqrstuvwxyz")
    other = write_teacher(tmp_path / "other", tokenizer=WordPieceTokenizer(Vocabulary(words, do_lower_case=True)))
    done = run(distill_command(tmp_path / "new", teacher=other, data=tiny_dataset))
    assert done.returncode == 2
    assert f"the data set in {tiny_dataset}" in done.stderr
    assert "has another vocabulary (fingerprint " in done.stderr
    assert f"than --teacher={other}" in done.stderr


def test_a_teacher_without_attention_and_commands_without_a_teacher_are_one_line(teacher: Path, tmp_path: Path):
    missing = run([sys.executable, "-m", "bert_jax.distill", "--config=configs/distill_minilm.py"])
    assert missing.stderr == "error: --teacher is missing: name the model to learn from\n"
    plain = [sys.executable, "-m", "bert_jax.distill", "--config=configs/tiny_cpu.py", f"--teacher={teacher}"]
    assert "config.distill is missing: type --config=configs/distill_minilm.py" in run(plain).stderr
    train = [sys.executable, "-m", "bert_jax.train", "--config=configs/distill_minilm.py", f"--workdir={tmp_path}/a"]
    assert "type `bert-jax distill --teacher=MODEL` with this config" in run(train).stderr
    plan = [sys.executable, "-m", "bert_jax.plan", "--config=configs/distill_minilm.py", "--topology=v5e:2x2"]
    assert "plan does not know the teacher of a distillation" in run(plan).stderr


@pytest.mark.slow
def test_a_student_with_some_of_the_teachers_layers_learns_masks_and_relations_together(teacher: Path, tmp_path: Path):
    """Packed, from text, with the teacher's vocabulary and width; the dry run says what the run will be."""
    overrides = ("data.objective=mlm", "data.pack=True", "model.hidden_size=64", "distill.pretraining_weight=1.0")
    command = [
        *distill_command(tmp_path / "run", *overrides, teacher=teacher),
        f"--init={teacher}",
        "--init_layers=0,2",
    ]
    planned = run([*command, "--dry_run"])
    assert planned.returncode == 0, planned.stderr
    assert "encoder/layers/query/kernel" in planned.stdout
    assert not (tmp_path / "run").exists()
    done = run(command, devices=2)
    assert done.returncode == 0, done.stderr
    assert "held-out relation loss before (step 0)" in done.stdout
    assert "held-out perplexity before (step 0)" in done.stdout
    lines = figures(tmp_path / "run")
    evaluations = [line for line in lines if "eval/mlm_loss" in line]
    total = evaluations[0]["eval/relation_loss"] + evaluations[0]["eval/mlm_loss"]
    assert evaluations[0]["eval/loss"] == pytest.approx(total, rel=1e-6)
    assert any("perf/instances_per_row" in line for line in lines)
    assert load_pretrained(tmp_path / "run").untrained == ("pooler", "next_sentence")


@pytest.mark.slow
def test_layers_of_a_model_go_on_as_a_smaller_model_of_masked_tokens(teacher: Path, tiny_dataset: Path, tmp_path: Path):
    command = [*train_command(tmp_path / "run", *STEPS, data=tiny_dataset), f"--init={teacher}", "--init_layers=0,2"]
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert "num_hidden_layers" not in done.stdout.partition("config.model takes its shape")[2].partition("\n")[0]
    student, whole = load_pretrained(tmp_path / "run"), load_pretrained(teacher)
    assert student.model.num_hidden_layers == 2
    first = next(line for line in figures(tmp_path / "run") if "eval/mlm_loss" in line)
    assert first["step"] == 0
    again = run(command)
    assert "already finished" in again.stdout
    assert student.params["encoder"]["embeddings"]["word_embeddings"].shape == (
        whole.params["encoder"]["embeddings"]["word_embeddings"].shape
    )


@pytest.mark.slow
def test_a_student_of_half_the_width_comes_closer_to_minilm_on_real_text(shared_data: Path, tmp_path: Path):
    overrides = (
        f"data.input={shared_data / 'pretrain_en' / 'wiki_0[01]'}",
        "data.heldout_fraction=0.05",
        "train.phases[0].max_seq_length=64",
        "train.num_steps=300",
        "train.batch_size=8",
        "optimizer.learning_rate=1e-3",
        "optimizer.warmup_steps=30",
        "model.dtype=float32",
        "model.initializer_range=0.05",
        "eval.every=100",
        "eval.max_examples=64",
        "log.report=False",
    )
    start = [sys.executable, "-m", "bert_jax.distill", "--config=configs/distill_minilm.py:L-3_H-192_A-6"]
    fields = [f"--config.{field}" for field in overrides]
    done = run([*start, f"--teacher={minilm()}", f"--workdir={tmp_path / 'run'}", *fields], timeout=900)
    assert done.returncode == 0, done.stderr
    losses = [line["eval/relation_loss"] for line in figures(tmp_path / "run") if "eval/relation_loss" in line]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]
