"""ModernBERT from text to a fine-tuned export, by the commands: phases of other lengths, prediction, continuation."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from test_fast_tokenizer import byte_level, source_with

from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.data.fast_tokenizer import load_fast_tokenizer
from bert_jax.pretrain.evaluate_pretrained import evaluate_pretrained
from tests.runs import checksums, figures, run

pytestmark = pytest.mark.slow

CONFIG = """
from bert_jax.config import default_config, phase


def get_config():
    config = default_config(model="ettin-17m")
    config.model.num_hidden_layers = 5
    config.model.hidden_size = 32
    config.model.num_attention_heads = 2
    config.model.intermediate_size = 48
    config.model.vocab_size = 512
    config.model.dtype = "float32"
    config.model.local_attention = 16
    config.data.objective = "mlm"
    config.data.input = "embedded"
    config.data.pack = True
    config.train.phases = (
        phase(fraction=0.5, max_seq_length=32),
        phase(fraction=0.5, max_seq_length=64, global_rope_theta=640_000.0, local_attention=32),
    )
    config.train.num_steps = 8
    config.train.batch_size = 8
    config.optimizer.warmup_steps = 2
    config.checkpoint.every = 4
    config.eval.every = 4
    config.eval.max_examples = 16
    config.log.every = 2
    return config
"""


def command(name: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"bert_jax.{name}", *flags]


def succeed(name: str, *flags: str) -> str:
    done = run(command(name, *flags))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workdir of a run of two phases; the second has another theta and window."""
    folder = tmp_path_factory.mktemp("modernbert")
    (folder / "config.py").write_text(CONFIG)
    succeed("train", f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}")
    return folder / "run"


def test_a_checkpoint_has_theta_and_window_of_the_phase_that_trained_it(trained: Path, tmp_path: Path) -> None:
    first, last = (load_pretrained(trained / "checkpoints" / str(step)).model for step in (4, 8))
    assert (first.global_rope_theta, first.local_attention) == (160_000.0, 16)
    assert (last.global_rope_theta, last.local_attention) == (640_000.0, 32)
    assert [line["step"] for line in figures(trained) if "eval/mlm_loss" in line] == [4, 8]
    succeed("export", f"--checkpoint={trained}", f"--out={tmp_path / 'out'}")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (fields["global_rope_theta"], fields["local_attention"]) == (640_000.0, 32)
    answer = json.loads(
        succeed("predict", f"--model={tmp_path / 'out'}", "--task=fill_mask", "--text=the [MASK] of a list")
    )
    assert len(answer["predictions"][0]) == 5


def test_evaluate_repeats_the_metrics_of_each_phase_with_its_theta_and_window(trained: Path) -> None:
    logged = {line["step"]: line for line in figures(trained) if "eval/mlm_loss" in line}
    for step in (4, 8):
        again = evaluate_pretrained(trained / "checkpoints" / str(step), report=lambda line: None)
        assert again["eval/mlm_loss"] == pytest.approx(logged[step]["eval/mlm_loss"], rel=1e-6)


def test_a_run_that_lost_its_last_phase_resumes_bit_equal(trained: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    expected = checksums(workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")  # resumed where theta and window change
    succeed("train", f"--config={trained.parent / 'config.py'}", f"--workdir={workdir}")
    assert checksums(workdir) == expected


def test_a_run_is_continued_with_another_theta_and_window_as_if_they_were_one_run(
    trained: Path, tmp_path: Path
) -> None:
    config = f"--config={trained.parent / 'config.py'}"
    unchanged = (
        "--config.train.phases[1].global_rope_theta=0.0",
        "--config.train.phases[1].local_attention=0",
    )
    data = f"--config.data.directory={trained / 'data'}"
    succeed("train", config, f"--workdir={tmp_path / 'stable'}", data, "--config.data.input=", *unchanged)
    assert checksums(tmp_path / "stable") != checksums(trained)
    stable = load_pretrained(tmp_path / "stable").model
    assert (stable.global_rope_theta, stable.local_attention) == (160_000.0, 16)
    branch = tmp_path / "branch"
    from_stable = f"--continue_from={tmp_path / 'stable' / 'checkpoints' / '4'}"
    succeed("train", config, f"--workdir={branch}", "--config.data.input=", from_stable)
    assert checksums(branch) == checksums(trained)
    longer = load_pretrained(branch).model
    assert (longer.global_rope_theta, longer.local_attention) == (640_000.0, 32)


def test_a_run_starts_from_its_export_and_needs_the_objective_without_next_sentences(
    trained: Path, tmp_path: Path
) -> None:
    succeed("export", f"--checkpoint={trained}", f"--out={tmp_path / 'out'}")
    flags = [
        "--config=configs/tiny_cpu.py",
        f"--init={tmp_path / 'out'}",
        f"--workdir={tmp_path / 'more'}",
        "--config.train.num_steps=4",
        "--config.optimizer.warmup_steps=2",
        "--config.eval.max_examples=16",
        "--config.train.batch_size=8",
    ]
    refused = run(command("train", *flags))
    assert refused.returncode == 2
    assert "architecture=modernbert has no next-sentence head: set config.data.objective=mlm" in refused.stderr
    assert not (tmp_path / "more" / "data").exists()
    assert "held-out perplexity before (step 0)" in succeed("train", *flags, "--config.data.objective=mlm")


def test_it_is_fine_tuned_on_custom_data_and_the_export_classifies(trained: Path, tmp_path: Path) -> None:
    rows = [{"text": f"it is {word}", "label": label} for word, label in (("good", "yes"), ("bad", "no"))]
    for name, times in (("train", 8), ("dev", 2)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows * times)) + "\n")
    succeed(
        "finetune",
        "--config=configs/finetune_own.py:classification",
        f"--init={trained}",
        f"--data_dir={tmp_path}",
        f"--workdir={tmp_path / 'labels'}",
        "--config.train.num_epochs=1",
        "--config.train.batch_size=8",
        "--config.optimizer.layerwise_lr_decay=0.9",
    )
    succeed("export", f"--checkpoint={tmp_path / 'labels'}", f"--out={tmp_path / 'out'}")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["architectures"] == ["ModernBertForSequenceClassification"]
    answer = json.loads(succeed("predict", f"--model={tmp_path / 'out'}", "--task=classify", "--text=it is good"))
    assert set(answer["probabilities"]) == {"yes", "no"}


def test_a_model_with_a_bpe_tokenizer_is_trained_on_and_fine_tuned_with_that_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the tokenizers extra: pip install -e '.[tokenizers]'")
    tokenizer = load_fast_tokenizer(byte_level(tmp_path / "bpe"))
    model = tmp_path / "model"
    export_folder(source_with(tokenizer), out=model, report=lambda line: None)
    succeed(
        "train",
        "--config=configs/tiny_cpu.py",
        f"--init={model}",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.objective=mlm",
        "--config.train.num_steps=4",
        "--config.train.batch_size=8",
        "--config.optimizer.warmup_steps=2",
        "--config.eval.max_examples=16",
    )
    rows = [{"words": ["the", name, "ran"], "tags": ["O", tag, "O"]} for name, tag in (("cat", "B-PET"), ("it", "O"))]
    for name, times in (("train", 8), ("dev", 2)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows * times)) + "\n")
    succeed(
        "finetune",
        "--config=configs/finetune_own.py:tags",
        f"--init={tmp_path / 'run'}",
        f"--data_dir={tmp_path}",
        f"--workdir={tmp_path / 'tags'}",
        "--config.train.num_epochs=1",
        "--config.train.batch_size=8",
    )
    succeed("export", f"--checkpoint={tmp_path / 'tags'}", f"--out={tmp_path / 'out'}")
    source, exported = (tmp_path / folder for folder in ("bpe", "out"))
    assert (exported / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    settings, now = (json.loads((folder / "tokenizer_config.json").read_text()) for folder in (source, exported))
    assert now == settings | {"model_max_length": 128}  # the length that was fine-tuned
    answer = json.loads(succeed("predict", f"--model={tmp_path / 'out'}", "--task=tag", "--text=the cat ran."))
    assert answer["words"] == ["the", "cat", "ran", "."]
