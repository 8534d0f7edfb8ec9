"""CoNLL-2003 named entities: columns in, the first piece of each word tagged, entities scored as `conlleval` does.

With `document_context` a row holds as much of the document as fits, and each word is tagged where it has the most
context on its poorer side (the paper's "maximal document context"); without it a row is a sentence.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config.task_options import DataOptions, NerOptions
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_text
from bert_jax.kinds.tags import Tags
from bert_jax.tasks.entity_metrics import EntityScores, entities, score_entities, split_tag, to_iob2
from bert_jax.tasks.files import numbered_lines
from bert_jax.tasks.interface import Instances, Outputs, Split, Task, find_file
from bert_jax.tasks.squad import max_context

_FILES = {
    "train": ("eng.train", "train.txt"),
    "dev": ("eng.testa", "valid.txt", "dev.txt"),
    "test": ("eng.testb", "test.txt"),
}
_DOCUMENT = "-DOCSTART-"


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Hold words, their tags as IOB2, and the number of the document they stand in; without labels all tags are O."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: int
    written: tuple[str, ...] = ()  # the tags as the file has them, for messages
    place: str = ""  # for messages
    labeled: bool = True


@dataclasses.dataclass(frozen=True)
class TaggedWord:
    """Hold where a scored word stands: its sentence and number in it, and its first piece in the instance."""

    sentence: int
    word: int
    token: int


def read_conll(path: Path, *, tag_column: int) -> list[Sentence]:
    """Return the sentences of a file of columns parted by white space, a blank line behind each sentence.

    Raises:
      UserError: for a line with another number of columns or a tag that is none, with its number.
    """
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    document, width, begun = -1, 0, 0

    def close() -> None:
        if words:
            place = f"{path} sentence from line {begun}"
            sentences.append(Sentence(tuple(words), tuple(to_iob2(tags)), document, tuple(tags), place))
            words.clear()
            tags.clear()

    for number, line in numbered_lines(path):
        columns = line.split()
        if not columns or columns[0] == _DOCUMENT:
            close()
            document += bool(columns)
            continue
        width = width or len(columns)
        if len(columns) != width or width < 2:
            raise UserError(
                f"{path} line {number}: {len(columns)} columns where {max(width, 2)} are expected: mend the line"
            )
        if not -width <= tag_column < width:
            raise UserError(f"config.ner.tag_column={tag_column}: {path} has {width} columns")
        try:
            split_tag(columns[tag_column])
        except UserError as error:
            raise UserError(f"{path} line {number}: {error}") from error
        begun = begun if words else number
        words.append(columns[0])
        tags.append(columns[tag_column])
    close()
    return sentences


class TagTask(Task):
    """Be a task that tags words; `labels` are those of train, as IOB2."""

    kind = Tags
    selection = "f1"
    context = False

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return O, then B- and I- of each type that train holds."""
        types = sorted({split_tag(tag)[1] for sentence in self.read("train") for tag in sentence.tags} - {""})
        return ("O", *itertools.chain.from_iterable((f"B-{kind}", f"I-{kind}") for kind in types))

    def featurise(self, examples: Sequence[Sentence], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return rows of whole documents or sentences, in windows where they are too long."""
        del training
        label_id = {label: index for index, label in enumerate(self.labels)}
        known = "O, " + ", ".join(sorted({split_tag(label)[1] for label in self.labels} - {""}))
        ids: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        places: list[list[TaggedWord]] = []
        pieces = iter(tokenizer.encode_batch([word for sentence in examples for word in sentence.words]))
        for group in _grouped(examples, by_document=self.context):
            stream = [(number, place, next(pieces)) for number in group for place in range(len(examples[number].words))]
            for window in _windows([len(p) for _, _, p in stream], limit=self.data.max_seq_length - 2):
                tokens, marks, here = [tokenizer.cls_id], [-1], []
                for index in window.words:
                    sentence, word, word_pieces = stream[index]
                    word_pieces = word_pieces[: self.data.max_seq_length - 2]
                    if word_pieces and window.scored[index - window.words.start]:
                        here.append(TaggedWord(sentence, word, len(tokens)))
                        tag = examples[sentence].tags[word]
                        if tag not in label_id:
                            raise _unknown_tag(examples[sentence], word, known=known)
                        marks.append(label_id[tag])
                    else:
                        marks += [-1] * bool(word_pieces)
                    tokens += word_pieces
                    marks += [-1] * (len(word_pieces) - 1)
                ids.append(np.array([*tokens, tokenizer.sep_id], np.int32))
                targets.append(np.array([*marks, -1], np.int32))
                places.append(here)
        labeled = all(sentence.labeled for sentence in examples)
        lengths = np.array([len(i) for i in ids], np.int32)
        return Instances(ids, lengths, targets if labeled else None, places=places)

    def predicted_tags(self, split: Split, outputs: Outputs) -> list[list[str]]:
        """Return a tag a word; a word of no piece (control characters alone) is O."""
        tags = [["O"] * len(sentence.words) for sentence in split.examples]
        for words, output in zip(split.features.places, outputs, strict=True):
            best = output.argmax(-1)
            for word in words:
                tags[word.sentence][word.word] = self.labels[int(best[word.token])]
        return tags

    def scores(self, split: Split, outputs: Outputs) -> EntityScores:
        """Return the scores of `conlleval`."""
        gold = [sentence.tags for sentence in split.examples]
        return score_entities(self.predicted_tags(split, outputs), gold=gold)

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return entity F1, precision and recall, and word accuracy, as fractions."""
        scores = self.scores(split, outputs)
        return {
            "f1": scores.overall.f1,
            "precision": scores.overall.precision,
            "recall": scores.overall.recall,
            "accuracy": scores.word_accuracy,
        }

    def tables(self, split: Split, outputs: Outputs) -> dict[str, Any]:
        """Return the scores of each type."""
        return {
            kind: {"precision": score.precision, "recall": score.recall, "f1": score.f1}
            for kind, score in self.scores(split, outputs).by_type.items()
        }

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write word, gold and predicted tag a line: what `conlleval` reads; without labels word and predicted tag."""
        path = directory / f"{self.name}-{split.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = [
            "".join(
                f"{word} {gold} {tag}\n" if split.features.targets is not None else f"{word} {tag}\n"
                for word, gold, tag in zip(s.words, s.tags, tags, strict=True)
            )
            for s, tags in zip(split.examples, self.predicted_tags(split, outputs), strict=True)
        ]
        write_text(path, "\n".join(blocks))
        return [path]

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the first sentences with entities missed or invented."""
        found = []
        for sentence, tags in zip(split.examples, self.predicted_tags(split, outputs), strict=True):
            gold, mine = set(entities(sentence.tags)), set(entities(tags))
            if gold != mine:

                def shown(some: set[Any], words: tuple[str, ...] = sentence.words) -> list[str]:
                    return [f"{e.type}: {' '.join(words[e.start : e.end])}" for e in sorted(some)]

                found.append(
                    {"text": " ".join(sentence.words), "missed": shown(gold - mine), "invented": shown(mine - gold)}
                )
        return found[:count]


def _unknown_tag(sentence: Sentence, word: int, *, known: str) -> UserError:
    tag = (sentence.written or sentence.tags)[word]
    place = f"{sentence.place}: " if sentence.place else ""
    return UserError(
        f"{place}unknown label {tag!r} (word {word + 1}, {sentence.words[word]!r}): train has {known}: mend the "
        "tag, or add sentences of its type to train"
    )


@dataclasses.dataclass(frozen=True)
class _WordWindow:
    words: range
    scored: np.ndarray  # bool, a word: here and in no other window


def _windows(sizes: Sequence[int], *, limit: int) -> Iterator[_WordWindow]:
    """Divide words of so many pieces into windows of at most `limit` pieces that overlap by half."""
    capped = [min(size, limit) for size in sizes]
    ranges: list[range] = []
    start = 0
    while True:
        end, taken = start, 0
        while end < len(capped) and taken + capped[end] <= limit:
            taken += capped[end]
            end += 1
        ranges.append(range(start, end))
        if end >= len(capped):
            break
        middle, half = start, 0
        while middle < end and half + capped[middle] <= limit // 2:
            half += capped[middle]
            middle += 1
        start = max(middle, start + 1)
    best = max_context([(r.start, len(r)) for r in ranges], total=len(sizes))
    for number, words in enumerate(ranges):
        yield _WordWindow(words, best[words.start : words.stop] == number)


def _grouped(sentences: Sequence[Sentence], *, by_document: bool) -> list[list[int]]:
    """Return the numbers of the sentences that share rows; documents do not interleave."""
    if not by_document:
        return [[number] for number in range(len(sentences))]
    return [list(group) for _, group in itertools.groupby(range(len(sentences)), key=lambda n: sentences[n].document)]


class NerTask(TagTask):
    """Be CoNLL-2003 named-entity recognition."""

    def __init__(self, *, data: DataOptions, ner: NerOptions):
        """Take the options."""
        self.name, self.data, self.ner = "ner", data, ner
        self.context = ner.document_context

    def read(self, split: str) -> Sequence[Sentence]:
        """Return the sentences of a split."""
        given = {"train": self.data.train_file, "dev": self.data.dev_file, "test": self.data.test_file}[split]
        path = find_file(self.data.directory, given=given, names=_FILES[split])
        return read_conll(path, tag_column=self.ner.tag_column)

    def group_of(self, example: Sentence, index: int) -> Any:
        """Return the document."""
        del index
        return example.document

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set."""
        return ("test",)
