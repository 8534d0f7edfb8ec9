"""The Python API: `bert_jax.load(PATH)` returns a model with one method per task."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_jax.config.task_options import HOLD_OUT, TYPED_FIELDS
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.errors import UserError, choose_one
from bert_jax.invocation import command, shown
from bert_jax.kinds.table import KINDS
from bert_jax.model.bilstm import BILSTM
from bert_jax.model.kernel_notices import kernel_notices
from bert_jax.prediction import tasks
from bert_jax.prediction.embedding import Embed
from bert_jax.prediction.engine import Engine, Predictor
from bert_jax.prediction.rows import Example, RowError
from bert_jax.prediction.spans import AnswerQuestion, TagWords

TASKS = ("fill_mask", "nsp", "features", "embed", "classify", "pair", "choice", "answer", "tag")
_FORMER_NAMES = {"qa": "answer", "ner": "tag"}
_REPORTED: set[str] = set()  # former names that were reported
_TASKS_OF_KINDS = {task for kind in KINDS.values() for task in kind.prediction_tasks}


def load(
    source: str | Path,
    *,
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> "Model":
    """Load a model: a workdir, one of its checkpoints, a HuggingFace folder, or the prefix of a TF1 checkpoint.

    `init_missing` names parts to initialize randomly if the model lacks them, `drop` parts to ignore. `report` is
    called with a line about whatever is skipped or randomly initialized.

    Raises:
      UserError: if there is no model, or it is damaged. The message says what to do.
    """
    loaded = load_pretrained(source, init_missing=init_missing, drop=drop, exact=False, report=report)
    for line in kernel_notices(dtype=loaded.model.dtype, implementation=loaded.model.attention_implementation):
        report(line)
    return Model(loaded)


def present_name(task: str) -> str:
    """Return the name of a task; the first use of a former name is reported on standard error."""
    if task not in _FORMER_NAMES:
        return task
    if task not in _REPORTED:
        _REPORTED.add(task)
        print(f"task {task} is now called {_FORMER_NAMES[task]}", file=sys.stderr)
    return _FORMER_NAMES[task]


class Model:
    """A model for prediction. Its methods take a text or a list of texts, and return an answer or a list of answers."""

    def __init__(self, source: PretrainedModel):
        """Copy the parameters to the default device."""
        self.source = source
        self.tokenizer = source.require_tokenizer()
        self._engine = Engine(
            source.params, pad_id=self.tokenizer.pad_id, max_length=source.model.max_position_embeddings
        )
        self._tasks: dict[Any, Predictor[Any]] = {}

    def __repr__(self) -> str:
        """Return what the model is: `BertForPreTraining(tiny: 2 layers, 128 wide, ...)`."""
        model, source = self.source.model, self.source
        size = sum(leaf.size for leaf in jax.tree.leaves(source.params)) / 1e6
        labels = f", labels {', '.join(source.labels)}" if source.output_kind is not None else ""
        return (
            f"<{source.architecture}: {model.num_hidden_layers} layers, {model.hidden_size} wide, {size:.1f} million "
            f"parameters, {model.vocab_size} tokens, up to {model.max_position_embeddings} long{labels}; {source.path}>"
        )

    def fill_mask(self, texts: str | Sequence[str], *, top_k: int = 5) -> Any:
        """Return the predictions for each [MASK] of each text, the most probable first."""
        return self._answers("fill_mask", texts, "predictions", top_k=top_k)

    def nsp(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return for each pair of texts the probability that the second text follows the first."""
        rows = [{"text_a": first, "text_b": second} for first, second in pairs]
        return [self._checked(row)["is_next"] for row in self.predict("nsp", rows)]

    def features(self, texts: str | Sequence[str], *, layers: Sequence[str] = ("last",)) -> Any:
        """Return tokens and hidden states of each text. `layers` are those of `tasks.TokenFeatures`."""
        return self._answers("features", texts, None, layers=tuple(layers))

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        pooling: str = "",
        normalize: bool | None = None,
        prompt: str = "",
        size: int = 0,
    ) -> np.ndarray:
        """Return one embedding per text, float32 [n, D], or [D] for a single text.

        The defaults are the settings of an embedder or of a sentence-transformers model; for others the mean, of length
        1. `prompt` is the name of one of its prompts, `size` the numbers of an embedding to keep.
        """
        task = self.task("embed", pooling=pooling, normalize=normalize, prompt=prompt, size=size)
        assert isinstance(task, Embed)
        is_single = isinstance(texts, str)
        try:
            examples = [task.prepare({"text": text})[0][0] for text in ([texts] if is_single else texts)]
        except RowError as error:
            raise UserError(str(error)) from None
        vectors = self.run(task, examples)
        stacked = np.stack(vectors) if vectors else np.zeros((0, task.size), np.float32)
        return stacked[0] if is_single else stacked

    def classify(self, texts: str | Sequence[str]) -> Any:
        """Return the label and the probabilities of each text."""
        return self._answers("classify", texts, None)

    def answer(self, question: str, *, context: str, null_threshold: float | None = None) -> dict[str, Any]:
        """Return the answer to a question, a span of the context."""
        row = {"question": question, "context": context}
        return self._checked(next(self.predict("answer", [row], null_threshold=null_threshold)))

    def tag(self, texts: str | Sequence[str]) -> Any:
        """Return the words, the labels and the entities of each text."""
        return self._answers("tag", texts, None)

    def predict(self, task: str, rows: Iterable[Mapping[str, Any]], **options: Any) -> Iterator[dict[str, Any]]:
        """Yield the answer to each row, in order. The answer to a wrong row is `{"error": ...}`.

        Raises:
          UserError: for an unknown task, or one that the model has no head for.
        """
        return self._engine.predict(self.task(task, **options), rows)

    @property
    def num_cut(self) -> int:
        """Return the number of rows so far that were too long for the model, so that a part was not read."""
        return self._engine.num_cut

    def run(self, task: Predictor[Any], examples: Sequence[Example]) -> list[Any]:
        """Return the outputs of prepared examples, one NumPy tree each, in order: the core of `predict`."""
        return self._engine.run(task.compute, examples)

    def task(self, name: str, **options: Any) -> Predictor[Any]:
        """Return a task by its name. It is created once per set of options.

        Raises:
          UserError: for an unknown task, or one that the model has no head for.
        """
        name = present_name(name)
        key = (name, *sorted(options.items()))
        if key not in self._tasks:
            self._tasks[key] = self._make(name, options)
        return self._tasks[key]

    def _make(self, name: str, options: Mapping[str, Any]) -> Predictor[Any]:
        if name not in TASKS:
            raise UserError(f"task {name!r}: {choose_one(name, TASKS)}")
        shared: dict[str, Any] = {"tokenizer": self.tokenizer, **options}
        model, labels, kind = self.source.model, self.source.labels, self.source.output_kind
        reading = self._reading(options) if name in ("classify", "pair", "choice") else {}
        makers: dict[str, Any] = {
            "fill_mask": lambda: tasks.FillMask(model, predicts_next=self.source.predicts_next, **shared),
            "nsp": lambda: tasks.NextSentence(model, **shared),
            "features": lambda: tasks.TokenFeatures(model, **shared),
            "embed": lambda: Embed(model, settings=self.source.embedding, path=self.source.path, **shared),
            "classify": lambda: tasks.Classify(model, labels=labels, kind=kind, **(shared | reading)),
            "pair": lambda: tasks.Classify(model, labels=labels, kind=kind, pairs=True, **(shared | reading)),
            "choice": lambda: tasks.Choice(model, labels=labels, **(shared | reading)),
            "answer": lambda: AnswerQuestion(model, **shared),
            "tag": lambda: TagWords(model, labels=labels, **shared),
        }
        task = makers[name]()
        if BILSTM in self.source.parts and name in _TASKS_OF_KINDS:
            task.parts = (*task.parts, BILSTM)
        self._check_parts(name, task.parts)
        return task

    def _reading(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return how long texts are read: as the options say, else as in fine-tuning, if the model knows."""
        return self.source.text_limits | {name: value for name, value in options.items() if value}

    def columns(self, task: str) -> dict[str, str]:
        """Return the column or key that each field of a task's row had in the custom data of fine-tuning."""
        own = self.source.record.get("config", {}).get("own") or {}
        fields = ("words",) if task == "tag" else TYPED_FIELDS.get(task, ("text_a",))
        return {field: own[name] for field, name in zip(fields, ("text", "text_pair"), strict=False) if own.get(name)}

    def usual_task(self) -> str:
        """Return the only task that the model was trained for, "" if there are several."""
        kind, is_embedding = self.source.output_kind, self.source.embedding is not None
        if kind is not None:
            names = kind.prediction_tasks
            own = self.source.record.get("config", {}).get("own") or {}
            if len(names) > 1 and own.get("text"):
                return "pair" if own.get("text_pair") else "classify"
            return names[0] if len(names) == 1 else ""
        return "embed" if is_embedding else "fill_mask" if "masked_lm" in self.source.parts else ""

    def _check_parts(self, name: str, parts: Sequence[str]) -> None:
        missing = [part for part in parts if part not in self.source.parts]
        if untrained := [part for part in parts if part in self.source.untrained]:
            raise UserError(
                f"{self.source.path}: no loss trained its {', '.join(untrained)}, so --task={name} would answer at "
                "random: give a model that was trained for it"
            )
        if name == "nsp" and self.source.model.attention_direction != "bidirectional":
            raise UserError(
                f"{self.source.path}: a left-to-right model cannot do --task=nsp: its [CLS] sees only itself"
            )
        kind = self.source.output_kind
        if missing or (name in _TASKS_OF_KINDS and (kind is None or name not in kind.prediction_tasks)):
            reason = f"has no {', '.join(missing)}" if missing else "has the head of another task"
            raise UserError(
                f"{self.source.path}: {self.source.architecture} {reason}, so it cannot do --task={name}: give a model "
                f"that was trained for it{self._training_of(name)}"
            )

    def _training_of(self, name: str) -> str:
        """Return how to fine-tune this model for a task; "" where fine-tuning has no such task, or was for another."""
        kind = next((kind for kind, output in KINDS.items() if name in output.prediction_tasks), "")
        if not kind or self.source.output_kind is not None:
            return ""
        pair = " --config.own.text_pair=COLUMN" if name == "pair" else ""
        config = f"--config=configs/finetune_own.py:{kind}{pair} --init={shown(self.source.path)}"
        return f", or fine-tune this one: {command('finetune', f'{config} --data_dir=FILE {HOLD_OUT}')}"

    def _answers(self, task: str, texts: str | Sequence[str], field: str | None, **options: Any) -> Any:
        is_single = isinstance(texts, str)
        rows = [{"text": text} for text in ([texts] if is_single else texts)]
        answers = [self._checked(row) for row in self.predict(task, rows, **options)]
        values = [answer[field] if field else answer for answer in answers]
        return values[0] if is_single else values

    @staticmethod
    def _checked(answer: dict[str, Any]) -> dict[str, Any]:
        if "error" in answer:
            raise UserError(answer["error"])
        return answer
