"""Minimal pairs: how often a model finds the acceptable sentence more likely than the unacceptable one (BLiMP's form).

A row is a JSON object with `sentence_good` and `sentence_bad`, and optionally `UID` (the paradigm; without it the
file's name) and `linguistics_term` (the phenomenon).
"""

import dataclasses
import glob
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from bert_jax.convert.loading import load_pretrained
from bert_jax.data.opening import ByteStream, open_texts
from bert_jax.errors import UserError
from bert_jax.json_files import parse_object
from bert_jax.prediction.engine import Engine
from bert_jax.prediction.likelihood import SentenceLikelihood, same_score
from bert_jax.progress import INTERVAL_SECONDS, ProgressBar, duration

_SUFFIXES = (".jsonl", ".json", ".ndjson")
_MAX_BYTES = 1 << 30  # of a file's text; BLiMP has 30 MB
_PAIRS = 256  # per call of the engine: some 6,000 sequences, enough for batches of one length
_CAUSAL_TOKENS = 2048  # per batch: logits of every position, 250 MB with 30,522 tokens


@dataclasses.dataclass(frozen=True)
class Pair:
    """A pair of sentences; `location` is "FILE line N"."""

    good: str
    bad: str
    uid: str
    phenomenon: str
    location: str


@dataclasses.dataclass
class Tally:
    """The pairs of a group: a tie is neither right nor wrong, and does not count as correct."""

    pairs: int = 0
    correct: int = 0
    ties: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the accuracy and the counts."""
        return {"accuracy": self.correct / max(self.pairs, 1), "pairs": self.pairs, "ties": self.ties}


def evaluate_minimal_pairs(
    path: str | Path,
    *,
    data: str,
    scoring: str = "",
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Return the accuracy of a model on the pairs of `data`: overall, by phenomenon and by UID.

    `data` names files, globs or archives, separated by commas. `scoring` is that of `SentenceLikelihood`. The
    computation is in float32 whatever the model was trained in, so that rounding makes no ties.

    Raises:
      UserError: if there is no model, it has no masked-LM head, or a row is damaged; the message names file and line.
    """
    if not data:
        raise UserError("--data is missing: name files of minimal pairs, for example --data='blimp/*.jsonl'")
    pairs = list(read_pairs(data))
    source = load_pretrained(path, init_missing=init_missing, drop=drop, exact=False, report=report)
    if "masked_lm" not in source.parts:
        raise UserError(
            f"{path} ({source.architecture}) has no masked-LM head to score with: name a pre-trained model, not a "
            "fine-tuned one"
        )
    tokenizer = source.require_tokenizer()
    task = SentenceLikelihood(source.model, tokenizer=tokenizer, scoring=scoring)
    engine = Engine(
        source.params,
        pad_id=tokenizer.pad_id,
        max_length=task.max_length,
        max_tokens=_CAUSAL_TOKENS if task.is_causal else None,
    )
    return {
        "task": "minimal_pairs",
        **_tallies(pairs, engine=engine, task=task, report=report),
        "scoring": task.scoring,
        "model": str(path),
        "step": source.record.get("step"),
        "data": data,
        **({"randomly_initialized": list(source.random)} if source.random else {}),
    }


def _tallies(
    pairs: Sequence[Pair], *, engine: Engine, task: SentenceLikelihood, report: Callable[[str], None]
) -> dict[str, Any]:
    overall = Tally()
    by_phenomenon: dict[str, Tally] = {}
    by_uid: dict[str, Tally] = {}
    progress = _Progress(len(pairs), report=report)
    for start in range(0, len(pairs), _PAIRS):
        part = pairs[start : start + _PAIRS]
        rows = [{"text": text} for pair in part for text in (pair.good, pair.bad)]
        scores = list(engine.predict(task, rows))
        for pair, good, bad in zip(part, scores[::2], scores[1::2], strict=True):
            for name, score in (("sentence_good", good), ("sentence_bad", bad)):
                if "error" in score:
                    raise UserError(f"{pair.location}: {name}: {score['error']}: fix the row or leave it out")
            is_tie = same_score(good, bad)
            is_correct = not is_tie and good["log_likelihood"] > bad["log_likelihood"]
            groups = [overall, by_uid.setdefault(pair.uid, Tally())]
            if pair.phenomenon:
                groups.append(by_phenomenon.setdefault(pair.phenomenon, Tally()))
            for tally in groups:
                tally.pairs, tally.ties = tally.pairs + 1, tally.ties + is_tie
                tally.correct += is_correct
        progress.reach(start + len(part))
    progress.finish()
    return {
        **overall.to_json(),
        "by_phenomenon": {name: by_phenomenon[name].to_json() for name in sorted(by_phenomenon)},
        "by_uid": {name: by_uid[name].to_json() for name in sorted(by_uid)},
    }


class _Progress:
    """A bar on a terminal, else a line at intervals; at the end the time that it took."""

    def __init__(self, total: int, *, report: Callable[[str], None]):
        self._total, self._report = total, report
        self._bar = ProgressBar(total=total, unit="pair")
        self._bar.begin()
        self._start = self._last = time.monotonic()

    def reach(self, done: int) -> None:
        """Show that `done` pairs are scored."""
        self._bar.reach(done)
        now = time.monotonic()
        if self._bar.is_shown or now - self._last < INTERVAL_SECONDS:
            return
        self._last = now
        self._report(
            f"{done:,} of {self._total:,} pairs, {self._bar.speed():.1f} pairs/s, {self._bar.time_left()} left"
        )

    def finish(self) -> None:
        """Close the bar and report the time."""
        self._bar.close()
        self._report(f"{self._total:,} pairs in {duration(time.monotonic() - self._start)}")


def read_pairs(data: str) -> Iterator[Pair]:
    """Yield the pairs of files, globs and archives, in the order of their names.

    Raises:
      UserError: if there is no pair, or a row is damaged; the message names file and line.
    """
    is_empty = True
    for file in _files(data):
        for stream in open_texts(file):
            if stream.name != file and not stream.name.endswith(_SUFFIXES):
                continue  # an archive holds other files too
            for pair in _pairs(stream):
                is_empty = False
                yield pair
    if is_empty:
        raise UserError(f"--data={data}: there is no pair in it: give JSON lines with sentence_good and sentence_bad")


def _files(data: str) -> list[str]:
    files: list[str] = []
    for item in [data] if Path(data).is_file() else [item.strip() for item in data.split(",") if item.strip()]:
        path = Path(item).expanduser()
        names = [item] if path.is_file() else glob.glob(str(path / "*.jsonl" if path.is_dir() else path))  # noqa: PTH207  absolute globs
        names = [name for name in names if Path(name).is_file()]
        if not names:
            raise UserError(f"--data={item}: matches no file: name a file of JSON lines, a zip archive, or a glob")
        files += sorted(names)
    return list(dict.fromkeys(files))


def _pairs(stream: ByteStream) -> Iterator[Pair]:
    content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UserError(f"{stream.name}: holds more than {_MAX_BYTES >> 30} GiB of text: split the file")
    stem = PurePosixPath(stream.name).stem
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        location = f"{stream.name} line {number}"
        try:
            row = parse_object(line)
        except ValueError as error:
            raise UserError(f"{location}: {error}: write one JSON object per line, {{...}}") from None
        good, bad = (_text(row, name, location=location) for name in ("sentence_good", "sentence_bad"))
        uid, phenomenon = (_text(row, name, location=location, default="") for name in ("UID", "linguistics_term"))
        yield Pair(good=good, bad=bad, uid=uid or stem, phenomenon=phenomenon, location=location)


def _text(row: dict[str, Any], name: str, *, location: str, default: str | None = None) -> str:
    value = row.get(name, default)
    if not isinstance(value, str) or not (value.strip() or default is not None):
        problem = "is missing" if name not in row else "is empty" if value == "" else "is not a text"
        raise UserError(f"{location}: {name} {problem}: write it as a JSON string")
    return value
