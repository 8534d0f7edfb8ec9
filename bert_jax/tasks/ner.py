"""CoNLL-2003 named-entity recognition: the first WordPiece token of each word is tagged; `conlleval` scores entities.

Without `document_context` each sentence is an instance. With it an instance is a window over the document, as long as
fits (the paper's "maximal document context"). A word in several windows is tagged in the one where the smaller of its
left and right context is largest.
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
from bert_jax.tasks.entity_metrics import Entity, EntityScores, entities, score_entities, split_tag, to_iob2
from bert_jax.tasks.files import numbered_lines
from bert_jax.tasks.interface import Instances, Outputs, Split, Task, find_file, split_file
from bert_jax.tasks.squad import max_context

_FILES = {
    "train": ("eng.train", "train.txt"),
    "dev": ("eng.testa", "valid.txt", "dev.txt"),
    "test": ("eng.testb", "test.txt"),
}
_DOCUMENT = "-DOCSTART-"


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Words, their tags as IOB2, and the index of their document. Without labels all tags are O."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    document: int
    file_tags: tuple[str, ...] = ()  # the tags as the file has them, for messages
    location: str = ""  # in the file, for messages
    labeled: bool = True


@dataclasses.dataclass(frozen=True)
class TaggedWord:
    """A scored word: the indices of its sentence and in it, and the position of its first token in the instance."""

    sentence: int
    word: int
    token: int


def read_conll(path: Path, *, tag_column: int) -> list[Sentence]:
    """Return the sentences of a CoNLL file: columns separated by white space, a blank line after each sentence.

    Raises:
      UserError: for a line with a wrong number of columns or an invalid tag, with its number.
    """
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    document, width, first_line = -1, 0, 0

    def close() -> None:
        if words:
            location = f"{path} sentence at line {first_line}"
            sentences.append(Sentence(tuple(words), tuple(to_iob2(tags)), document, tuple(tags), location))
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
            raise UserError(f"{path} line {number}: {len(columns)} columns, expected {max(width, 2)}: fix the line")
        if not -width <= tag_column < width:
            raise UserError(
                f"config.ner.tag_column={tag_column}: {path} has {width} columns: give a number from {-width} to "
                f"{width - 1}"
            )
        try:
            split_tag(columns[tag_column])
        except UserError as error:
            raise UserError(f"{path} line {number}: {error}") from error
        first_line = first_line if words else number
        words.append(columns[0])
        tags.append(columns[tag_column])
    close()
    return sentences


class TagTask(Task):
    """A task that tags words. `labels` are the tags of train as IOB2."""

    kind = Tags
    selection = "f1"
    context = False

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return O, then B- and I- of each entity type in train."""
        types = sorted({split_tag(tag)[1] for sentence in self.read("train") for tag in sentence.tags} - {""})
        return ("O", *itertools.chain.from_iterable((f"B-{kind}", f"I-{kind}") for kind in types))

    def featurize(self, examples: Sequence[Sentence], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return one instance per sentence or document, or several windows if it is too long."""
        del training
        label_id = {label: index for index, label in enumerate(self.labels)}
        known = "O, " + ", ".join(sorted({split_tag(label)[1] for label in self.labels} - {""}))
        ids: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        alignments: list[list[TaggedWord]] = []
        encoded = iter(tokenizer.encode_batch([word for sentence in examples for word in sentence.words]))
        for group in _grouped(examples, by_document=self.context):
            stream = [
                (number, index, next(encoded)) for number in group for index in range(len(examples[number].words))
            ]
            for window in _windows([len(t) for _, _, t in stream], limit=self.data.max_seq_length - 2):
                tokens, tag_ids, tagged_words = [tokenizer.cls_id], [-1], []
                for index in window.words:
                    sentence, word, word_tokens = stream[index]
                    word_tokens = word_tokens[: self.data.max_seq_length - 2]
                    if word_tokens and window.scored[index - window.words.start]:
                        tagged_words.append(TaggedWord(sentence, word, len(tokens)))
                        tag = examples[sentence].tags[word]
                        if tag not in label_id:
                            raise _unknown_tag(examples[sentence], word, known=known)
                        tag_ids.append(label_id[tag])
                    else:
                        tag_ids += [-1] * bool(word_tokens)
                    tokens += word_tokens
                    tag_ids += [-1] * (len(word_tokens) - 1)
                ids.append(np.array([*tokens, tokenizer.sep_id], np.int32))
                targets.append(np.array([*tag_ids, -1], np.int32))
                alignments.append(tagged_words)
        labeled = all(sentence.labeled for sentence in examples)
        lengths = np.array([len(i) for i in ids], np.int32)
        return Instances(ids, lengths, targets if labeled else None, alignments=alignments)

    def predicted_tags(self, split: Split, outputs: Outputs) -> list[list[str]]:
        """Return one tag per word. A word without tokens (only control characters) is O."""
        tags = [["O"] * len(sentence.words) for sentence in split.examples]
        for words, output in zip(split.features.alignments, outputs, strict=True):
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
        """Return the scores of each entity type."""
        return {
            kind: {"precision": score.precision, "recall": score.recall, "f1": score.f1}
            for kind, score in self.scores(split, outputs).by_type.items()
        }

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write word, gold tag and predicted tag per line, the input of `conlleval`; without labels no gold tag."""
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
        """Return the first sentences whose predicted entities are not the gold ones."""
        records = []
        for sentence, tags in zip(split.examples, self.predicted_tags(split, outputs), strict=True):
            gold, predicted = set(entities(sentence.tags)), set(entities(tags))
            if gold != predicted:
                missed, invented = (_shown(group, sentence.words) for group in (gold - predicted, predicted - gold))
                records.append({"text": " ".join(sentence.words), "missed": missed, "invented": invented})
        return records[:count]


def _shown(group: set[Entity], words: Sequence[str]) -> list[str]:
    return [f"{entity.type}: {' '.join(words[entity.start : entity.end])}" for entity in sorted(group)]


def _unknown_tag(sentence: Sentence, word: int, *, known: str) -> UserError:
    tag = (sentence.file_tags or sentence.tags)[word]
    location = f"{sentence.location}: " if sentence.location else ""
    return UserError(
        f"{location}unknown label {tag!r} (word {word + 1}, {sentence.words[word]!r}); train has {known}: fix the "
        "tag, or add sentences of its type to train"
    )


@dataclasses.dataclass(frozen=True)
class _WordWindow:
    words: range
    scored: np.ndarray  # bool, per word: whether this window scores it; exactly one window does


def _windows(sizes: Sequence[int], *, limit: int) -> Iterator[_WordWindow]:
    """Yield windows over words: at most `limit` tokens each, overlapping by half. `sizes` are the words' tokens."""
    capped = [min(size, limit) for size in sizes]
    ranges: list[range] = []
    start = 0
    while True:
        end, length = start, 0
        while end < len(capped) and length + capped[end] <= limit:
            length += capped[end]
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
    """Return the indices of the sentences that share windows. Documents do not interleave."""
    if not by_document:
        return [[number] for number in range(len(sentences))]
    return [list(group) for _, group in itertools.groupby(range(len(sentences)), key=lambda n: sentences[n].document)]


class NerTask(TagTask):
    """CoNLL-2003 named-entity recognition."""

    def __init__(self, *, data: DataOptions, ner: NerOptions):
        """Set the task up with its options."""
        self.name, self.data, self.ner = "ner", data, ner
        self.context = ner.document_context

    def read(self, split: str) -> Sequence[Sentence]:
        """Return the sentences of a split."""
        path = find_file(self.data.directory, file=split_file(self.data, split), names=_FILES[split])
        return read_conll(path, tag_column=self.ner.tag_column)

    def group_of(self, example: Sentence, index: int) -> Any:
        """Return the index of the document."""
        del index
        return example.document

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set."""
        return ("test",)
