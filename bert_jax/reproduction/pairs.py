"""The unit that scores minimal pairs with a checkpoint."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.files import write_json, write_json_lines
from bert_jax.json_files import read_json
from bert_jax.model.architectures import architecture_of
from bert_jax.prediction.minimal_pairs import Pair, evaluate_minimal_pairs, read_pairs
from bert_jax.reproduction.pretraining import PretrainingWork
from bert_jax.reproduction.work import Context, Work, file_digest

_RESULT, _PAIRS = "minimal_pairs.json", "pairs.jsonl"
_TOKENS_PER_SENTENCE = 12  # of BLiMP's sentences with a vocabulary of 8,192
_FORWARD = 1 / 3  # of the FLOPs of a training step


class PairsWork(Work):
    """The accuracy of a checkpoint on minimal pairs."""

    kind = "minimal pairs"
    packages = ("rows", "model", "prediction")

    def __init__(self, file: Path, *, limit: int, model: PretrainingWork, step: int, title: str):
        """Take a file or archive of pairs, and of each paradigm at most `limit` (0: all).

        Raises:
          UserError: if there is none.
        """
        self._file, self._limit, self._model, self._step = file, limit, model, step
        self._digest_of_file = file_digest(file)
        self.title = f"minimal pairs of {title}"

    @property
    def needs(self) -> tuple[Work, ...]:
        """Return the pre-training run."""
        return (self._model,)

    @property
    def group(self) -> str:
        """Return the kind and whether each token is masked in turn, which takes a forward pass per token."""
        return f"{self.kind} {'causal' if self._is_causal else 'masked'}"

    @property
    def _is_causal(self) -> bool:
        return self._model.config.model.attention_direction != "bidirectional"

    def content(self) -> Mapping[str, Any]:
        """Return the pairs and the step."""
        return {"pairs": self._digest_of_file, "limit": self._limit, "step": self._step}

    def flops(self) -> float:
        """Return the FLOPs of two sentences of usual length per pair."""
        model, tokens = self._model.config.model, _TOKENS_PER_SENTENCE
        passes = 1 if self._is_causal else tokens
        row = architecture_of(model).train_flops_per_row(model, max_seq_length=tokens, max_predictions=1)
        return 2 * len(_pairs(self._file, limit=self._limit)) * passes * row * _FORWARD

    def done_fraction(self, folder: Path) -> float:
        """Return 1 once the result is written: nothing is kept of an interrupted scoring."""
        return float((folder / _RESULT).exists())

    def run(self, folder: Path, *, context: Context) -> None:
        """Score.

        Raises:
          UserError: on several hosts, where one would have to score with devices that the others wait for.
        """
        if context.hosts.count > 1:
            raise UserError("minimal pairs are scored on one host: run the same command there, later")
        path = self._model.checkpoint(self._step, context=context)
        write_json_lines(folder / _PAIRS, map(_row, _pairs(self._file, limit=self._limit)))
        result = evaluate_minimal_pairs(path, data=str(folder / _PAIRS), report=context.report)
        write_json(folder / _RESULT, result)

    def result(self, folder: Path) -> dict[str, Any]:
        """Return the accuracy, and that of each phenomenon."""
        record = read_json(folder / _RESULT)
        by_phenomenon = {name: tally["accuracy"] for name, tally in record["by_phenomenon"].items()}
        return {"metrics": {"accuracy": record["accuracy"]}, "by_phenomenon": by_phenomenon}


_SELECTED: dict[tuple[Path, int], list[Pair]] = {}  # rows of a table score the same pairs


def _pairs(file: Path, *, limit: int) -> list[Pair]:
    """Return at most `limit` pairs of each paradigm (0: all)."""
    if (file, limit) not in _SELECTED:
        counts: Counter[str] = Counter()
        chosen = []
        for pair in read_pairs(str(file)):
            counts[pair.uid] += 1
            if not limit or counts[pair.uid] <= limit:
                chosen.append(pair)
        _SELECTED[file, limit] = chosen
    return _SELECTED[file, limit]


def _row(pair: Pair) -> dict[str, str]:
    return {
        "sentence_good": pair.good,
        "sentence_bad": pair.bad,
        "UID": pair.uid,
        "linguistics_term": pair.phenomenon,
    }
