"""Give the Python API: `bert_jax.load(SOURCE)` and a method a task."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.kinds.table import KINDS
from bert_jax.model.kernel_notices import kernel_notices
from bert_jax.prediction import tasks
from bert_jax.prediction.engine import Engine, Predictor
from bert_jax.prediction.rows import Example, RowError
from bert_jax.prediction.spans import AnswerQuestion, TagWords

TASKS = ("fill_mask", "nsp", "features", "embed", "classify", "pair", "choice", "qa", "ner")
_TASKS_OF_KINDS = {task for kind in KINDS.values() for task in kind.prediction_tasks}


def load(
    source: str | Path,
    *,
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> "Model":
    """Load the model that `source` names: a workdir, a checkpoint, a HuggingFace folder or a TF1 prefix.

    `report` is told of a damaged checkpoint that is passed over.

    Raises:
      UserError: if there is no model there, or it is damaged; the line says what to do.
    """
    loaded = load_pretrained(source, init_missing=init_missing, drop=drop, report=report)
    for line in kernel_notices(dtype=loaded.model.dtype, implementation=loaded.model.attention_implementation):
        report(line)
    return Model(loaded)


class Model:
    """Predict with one model; methods take one text or a list of them, and answer in kind."""

    def __init__(self, source: PretrainedModel):
        """Put the parameters on the default device."""
        self.source = source
        self.tokenizer = source.require_tokenizer()
        self._engine = Engine(
            source.params, pad_id=self.tokenizer.pad_id, max_length=source.model.max_position_embeddings
        )
        self._tasks: dict[Any, Predictor[Any]] = {}

    def fill_mask(self, texts: str | Sequence[str], *, top_k: int = 5) -> Any:
        """Return for each text the guesses of each of its [MASK]s, the likeliest first."""
        return self._answers("fill_mask", texts, "predictions", top_k=top_k)

    def nsp(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return for each pair of texts the probability that the second follows the first."""
        rows = [{"text_a": first, "text_b": second} for first, second in pairs]
        return [self._checked(row)["is_next"] for row in self.predict("nsp", rows)]

    def features(self, texts: str | Sequence[str], *, layers: Sequence[str] = ("last",)) -> Any:
        """Return tokens and hidden states of each text; `layers` as `tasks.TokenFeatures` has them."""
        return self._answers("features", texts, None, layers=tuple(layers))

    def embed(self, texts: str | Sequence[str], *, pooling: str = "mean", normalize: bool = True) -> np.ndarray:
        """Return float32 [n, D], or [D] for one text."""
        task = self.task("embed", pooling=pooling, normalize=normalize)
        one = isinstance(texts, str)
        try:
            examples = [task.prepare({"text": text})[0][0] for text in ([texts] if one else texts)]
        except RowError as error:
            raise UserError(str(error)) from None
        vectors = self.run(task, examples)
        stacked = np.stack(vectors) if vectors else np.zeros((0, self.source.model.hidden_size), np.float32)
        return stacked[0] if one else stacked

    def classify(self, texts: str | Sequence[str]) -> Any:
        """Return label and probabilities of each text."""
        return self._answers("classify", texts, None)

    def answer(self, question: str, *, context: str, null_threshold: float | None = None) -> dict[str, Any]:
        """Return the answer to a question about a context."""
        row = {"question": question, "context": context}
        return self._checked(next(self.predict("qa", [row], null_threshold=null_threshold)))

    def tag(self, texts: str | Sequence[str]) -> Any:
        """Return words, labels and entities of each text."""
        return self._answers("ner", texts, None)

    def predict(self, task: str, rows: Iterable[Mapping[str, Any]], **options: Any) -> Iterator[dict[str, Any]]:
        """Yield an answer for each row, in order; a row that fails gives `{"error": ...}`.

        Raises:
          UserError: for an unknown task, or one that the model has no head for.
        """
        return self._engine.predict(self.task(task, **options), rows)

    def run(self, task: Predictor[Any], examples: Sequence[Example]) -> list[Any]:
        """Return the outputs of prepared examples, NumPy trees in order: the core of `predict`."""
        return self._engine.run(task.compute, examples)

    def task(self, name: str, **options: Any) -> Predictor[Any]:
        """Return the task of a name, made once for each set of options.

        Raises:
          UserError: for an unknown task, or one that the model has no head for.
        """
        key = (name, *sorted(options.items()))
        if key not in self._tasks:
            self._tasks[key] = self._make(name, options)
        return self._tasks[key]

    def _make(self, name: str, options: Mapping[str, Any]) -> Predictor[Any]:
        if name not in TASKS:
            raise UserError(f"task {name!r}: choose one of {', '.join(TASKS)}")
        shared: dict[str, Any] = {"tokenizer": self.tokenizer, **options}
        model, labels, kind = self.source.model, self.source.labels, self.source.output_kind
        makers: dict[str, Any] = {
            "fill_mask": lambda: tasks.FillMask(model, **shared),
            "nsp": lambda: tasks.NextSentence(model, **shared),
            "features": lambda: tasks.TokenFeatures(model, **shared),
            "embed": lambda: tasks.Embed(model, **shared),
            "classify": lambda: tasks.Classify(model, labels=labels, kind=kind, **shared),
            "pair": lambda: tasks.Classify(model, labels=labels, kind=kind, pairs=True, **shared),
            "choice": lambda: tasks.Choice(model, labels=labels, **shared),
            "qa": lambda: AnswerQuestion(model, **shared),
            "ner": lambda: TagWords(model, labels=labels, **shared),
        }
        task = makers[name]()
        self._check_parts(name, task.parts)
        return task

    def _check_parts(self, name: str, parts: Sequence[str]) -> None:
        missing = [part for part in parts if part not in self.source.parts]
        kind = self.source.output_kind
        if missing or (name in _TASKS_OF_KINDS and (kind is None or name not in kind.prediction_tasks)):
            lacks = f"has no {', '.join(missing)}" if missing else "has another head"
            raise UserError(
                f"{self.source.path}: {self.source.architecture} {lacks}, so it cannot do --task={name}: name a model "
                "trained for it"
            )

    def _answers(self, task: str, texts: str | Sequence[str], field: str | None, **options: Any) -> Any:
        one = isinstance(texts, str)
        rows = [{"text": text} for text in ([texts] if one else texts)]
        answers = [self._checked(row) for row in self.predict(task, rows, **options)]
        chosen = [answer[field] if field else answer for answer in answers]
        return chosen[0] if one else chosen

    @staticmethod
    def _checked(answer: dict[str, Any]) -> dict[str, Any]:
        if "error" in answer:
            raise UserError(answer["error"])
        return answer
