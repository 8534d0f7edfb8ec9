"""An exported model of every kind is what transformers' Auto classes make of its folder: labels, ids, logits."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="needs the parity extra: pip install -e '.[parity]'")

from bert_jax.convert.export_folder import export_folder  # noqa: E402
from bert_jax.convert.loading import load_pretrained  # noqa: E402
from bert_jax.kinds.table import KINDS  # noqa: E402
from bert_jax.prediction.model import Model, load  # noqa: E402
from tests.rounding import assert_rounded_alike, huggingface_bound  # noqa: E402
from tests.runs import run, train_command  # noqa: E402
from tests.test_parity_finetune import open_experiment  # noqa: E402

# The oracle's own warnings are not ours.
pytestmark = [pytest.mark.parity, pytest.mark.numerics, pytest.mark.filterwarnings("default")]
INPUTS = {"input_ids", "token_type_ids", "attention_mask"}
TEXT = "the film was very good and it was fine"
PAIR = ("was it fine", TEXT)
AUTO: dict[str, str] = {
    "classification": "AutoModelForSequenceClassification",
    "multilabel": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "tags": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
    "choice": "AutoModelForMultipleChoice",
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "classification": ("classify", {"text": TEXT}),
    "multilabel": ("classify", {"text": TEXT}),
    "regression": ("pair", {"text_a": PAIR[0], "text_b": PAIR[1]}),
    "tags": ("tag", {"text": TEXT}),
    "span": ("answer", {"question": PAIR[0], "context": PAIR[1]}),
    "choice": ("choice", {"text_a": PAIR[0], "choices": ["it was very good", "it was bad", TEXT]}),
}


@pytest.fixture(autouse=True)
def _quiet_oracle() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def export(workdir: Path, folder: Path) -> Path:
    export_folder(load_pretrained(workdir), out=folder, report=lambda line: None)
    return folder


def opened(name: str, folder: Path) -> Any:
    """Return the model that an Auto class makes of a folder, every one of its parameters read from there."""
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def texts_of(row: dict[str, Any]) -> tuple[list[str], list[str] | None]:
    """Return the first and second texts of the sequences of a row."""
    if "choices" in row:
        return [row["text_a"]] * len(row["choices"]), row["choices"]
    first, *second = row.values()
    return [first], second or None


def assert_same_answers(ours: Any, theirs: Any, *, kind: str, folder: Path, inputs: set[str]) -> None:
    """Compare ids and logits of a model with its HuggingFace class, which takes `inputs` from the tokenizer."""
    name, row = ROWS[kind]
    task = ours.task(name)
    examples, _ = task.prepare(row)
    first, second = texts_of(row)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(first, second, padding=True)
    assert set(tokens) == inputs
    for ids, mask, example in zip(tokens["input_ids"], tokens["attention_mask"], examples, strict=True):
        assert ids[: sum(mask)] == list(example.ids)
    tensors = {name: torch.tensor(value) for name, value in tokens.items()}
    if kind == "choice":
        tensors = {name: value[None] for name, value in tensors.items()}
    with torch.no_grad():
        out = theirs(**tensors)
    logits = torch.stack([out.start_logits, out.end_logits], -1) if kind == "span" else out.logits
    outputs = ours.run(task, examples)
    if kind in ("tags", "span"):  # an output a token, padding behind
        outputs = [output[: len(example.ids)] for output, example in zip(outputs, examples, strict=True)]
    given = np.stack(outputs)
    bound = huggingface_bound(ours.source.model, length=tensors["input_ids"].shape[-1])
    assert_rounded_alike(np.squeeze(given), np.squeeze(logits.numpy()), bound=bound)  # zeros would not be, of 1 %


@pytest.mark.parametrize("kind", KINDS)
def test_a_fine_tuned_folder_gives_its_auto_class_our_labels_ids_and_logits(tmp_path: Path, kind: str):
    experiment = open_experiment(tmp_path, kind)
    experiment.run_all()
    ours = load(export(tmp_path / "work", tmp_path / "out"))
    theirs = opened(AUTO[kind], tmp_path / "out")
    assert theirs.config.architectures == [ours.source.architecture]
    if experiment.task.labels:
        assert list(theirs.config.id2label.values()) == list(experiment.task.labels)
    assert_same_answers(ours, theirs, kind=kind, folder=tmp_path / "out", inputs=INPUTS)


def test_a_pretrained_folder_fills_masks_and_judges_pairs_as_we_do(tiny_dataset: Path, tmp_path: Path):
    overrides = ("train.num_steps=4", "optimizer.warmup_steps=2", "eval.every=4", "checkpoint.every=4")
    done = run(train_command(tmp_path / "run", *overrides, data=tiny_dataset))
    assert done.returncode == 0, done.stderr
    folder = export(tmp_path / "run", tmp_path / "out")
    ours = Model(load_pretrained(folder))
    assert type(opened("AutoModel", folder)).__name__ == "BertModel"
    judge = opened("AutoModelForPreTraining", folder)
    assert type(judge).__name__ == "BertForPreTraining"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = judge(**tokenizer(*PAIR, return_tensors="pt")).seq_relationship_logits
    bound = 2 * huggingface_bound(ours.source.model)  # a probability is off, relatively, by as much as two logits are
    assert ours.nsp([PAIR]) == [pytest.approx(float(torch.softmax(logits, -1)[0, 0]), rel=bound)]
    text = "the [MASK] of a list"
    theirs = transformers.pipeline("fill-mask", model=str(folder), top_k=5)(text)
    mine = ours.fill_mask(text, top_k=5)[0]
    assert [item["id"] for item in mine] == [item["token"] for item in theirs]
    np.testing.assert_allclose([i["probability"] for i in mine], [i["score"] for i in theirs], rtol=bound)
