"""CoNLL-2003 named-entity recognition: the first WordPiece token of each word is tagged; `conlleval` scores entities.

Without `document_context` each sentence is an instance. With it an instance is a window over the document, as long as
fits (the paper's "maximal document context"). A word in several windows is tagged in the one where the smaller of its
left and right context is largest.
"""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config.task_options import DataOptions, NerOptions
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import write_text
from bert_jax.kinds.tags import Tags
from bert_jax.tasks.conll import Sentence, read_conll
from bert_jax.tasks.entity_metrics import (
    CHUNKS,
    PLAIN,
    Entity,
    EntityScores,
    entities,
    is_chunk_tag,
    scheme_of,
    score_tags,
    split_tag,
    summary,
)
from bert_jax.tasks.interface import Instances, Outputs, Split, Task, find_file, split_file
from bert_jax.tasks.own_labels import sorted_labels
from bert_jax.tasks.squad import max_context

_FILES = {
    "train": ("eng.train", "train.txt"),
    "dev": ("eng.testa", "valid.txt", "dev.txt", "validation.txt"),
    "test": ("eng.testb", "test.txt"),
}
_SHOWN = 30  # types or tags in a note


@dataclasses.dataclass(frozen=True)
class TaggedWord:
    """A scored word: the indices of its sentence and in it, and the position of its first token in the instance."""

    sentence: int
    word: int
    token: int


class TagTask(Task):
    """A task that tags words: entities, whose `labels` are IOB2, or tags without prefixes."""

    kind = Tags
    context = False

    @functools.cached_property
    def scheme(self) -> str:
        """Return whether the tags of train are entities or tags without prefixes (`entity_metrics`)."""
        return scheme_of(sentence.file_tags or sentence.tags for sentence in self.read("train"))

    @functools.cached_property
    def selection(self) -> str:  # type: ignore[override]
        """Return entity F1, or accuracy for tags without prefixes."""
        return self.selections[0]

    @functools.cached_property
    def selections(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the metrics of the scheme."""
        return ("f1", "precision", "recall", "accuracy") if self.scheme == CHUNKS else ("accuracy", "macro_f1")

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return O, then B- and I- of each entity type in train; without prefixes, the tags of train, sorted.

        Raises:
          UserError: if train has only one tag.
        """
        tags = {tag for sentence in self.read("train") for tag in sentence.tags}
        if self.scheme == CHUNKS:
            types = sorted({split_tag(tag)[1] for tag in tags} - {""})
            labels = ("O", *itertools.chain.from_iterable((f"B-{kind}", f"I-{kind}") for kind in types))
        else:
            labels = sorted_labels(tags)
        if len(labels) == 1:
            raise UserError(
                f"the only tag of the train set is {labels[0]}: there is nothing to learn; name the column of the "
                "tags, or add sentences with other tags"
            )
        return labels

    def notes(self, train: Split) -> list[str]:
        """Return what the tags are, and how often each type occurs in train."""
        counts: Counter[str] = Counter()
        for sentence in train.examples:
            counts.update(e.type for e in entities(sentence.tags)) if self.scheme == CHUNKS else counts.update(
                sentence.tags
            )
        shown = ", ".join(f"{kind} ({count})" for kind, count in counts.most_common(_SHOWN))
        more = f", and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
        if self.scheme == CHUNKS:
            prefixes = {tag.partition("-")[0] for s in train.examples for tag in s.file_tags} - {"O", "B", "I"}
            read = f" (the file also has {', '.join(sorted(prefixes))}: read as B and I)" if prefixes else ""
            return [f"tags: entities{read}, in train: {shown}{more}"]
        line = f"tags without prefixes, scored by accuracy and F1 per tag, in train: {shown}{more}"
        if all(label.isdigit() for label in self.labels):
            line += "; they are numbers: --config.own.labels=O,B-PER,... names them, in the order of their numbers"
        return [line]

    def sample(self, examples: Sequence[Sentence], *, limit: int) -> Sequence[Sentence]:
        """Return whole documents of at most `limit` sentences in all, so that context has no holes.

        Of documents that are all longer, it is the beginning of one.
        """
        if not self.context:
            return super().sample(examples, limit=limit)
        documents = _grouped(examples, by_document=True)
        order = np.random.default_rng(self.data.seed).permutation(len(documents))
        chosen: list[int] = []
        for number in order:
            if len(chosen) + len(documents[number]) <= limit:
                chosen += documents[number]
        return [examples[i] for i in sorted(chosen or documents[order[0]][:limit])]

    def featurize(self, examples: Sequence[Sentence], *, tokenizer: Tokenizer, training: bool) -> Instances:
        """Return one instance per sentence or document, or several windows if it is too long."""
        del training
        label_id = {label: index for index, label in enumerate(self.labels)}
        known = _known(self.labels)
        ids: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        alignments: list[list[TaggedWord]] = []
        encoded = iter(tokenizer.encode_words([word for sentence in examples for word in sentence.words]))
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
        """Return one tag per word. A word without tokens (only control characters) is O, or has the first tag."""
        outside = "O" if "O" in self.labels else self.labels[0]
        tags = [[outside] * len(sentence.words) for sentence in split.examples]
        for words, output in zip(split.features.alignments, outputs, strict=True):
            best = output.argmax(-1)
            for word in words:
                tags[word.sentence][word.word] = self.labels[int(best[word.token])]
        return tags

    def scores(self, split: Split, outputs: Outputs) -> EntityScores:
        """Return the scores of `conlleval`, or of each tag if tags have no prefixes."""
        gold = [sentence.tags for sentence in split.examples]
        return score_tags(self.predicted_tags(split, outputs), gold=gold, scheme=self.scheme)

    def score(self, split: Split, outputs: Outputs) -> dict[str, float]:
        """Return entity F1, precision and recall, and word accuracy; without prefixes accuracy and macro F1."""
        return summary(self.scores(split, outputs), scheme=self.scheme)

    def tables(self, split: Split, outputs: Outputs) -> dict[str, Any]:
        """Return the scores and counts of each entity type, or of each tag."""
        return {kind: score.as_json() for kind, score in self.scores(split, outputs).by_type.items()}

    def write_predictions(self, split: Split, outputs: Outputs, *, directory: Path) -> list[Path]:
        """Write word, gold tag and predicted tag per line, the input of `conlleval`; without labels no gold tag.

        Columns are separated by spaces, or by tabs if a word contains a space.
        """
        mark = "\t" if any(" " in word for sentence in split.examples for word in sentence.words) else " "
        path = directory / f"{self.name}-{split.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = [
            "".join(
                mark.join((word, gold, tag) if split.features.targets is not None else (word, tag)) + "\n"
                for word, gold, tag in zip(s.words, s.tags, tags, strict=True)
            )
            for s, tags in zip(split.examples, self.predicted_tags(split, outputs), strict=True)
        ]
        write_text(path, "\n".join(blocks))
        return [path]

    def mistakes(self, split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
        """Return the first sentences whose predicted entities, or tags without prefixes, are not the gold ones."""
        records: list[dict[str, Any]] = []
        for sentence, tags in zip(split.examples, self.predicted_tags(split, outputs), strict=True):
            if self.scheme == PLAIN:
                triples = zip(sentence.words, sentence.tags, tags, strict=True)
                if wrong := [f"{word}: {right}, not {tag}" for word, right, tag in triples if tag != right]:
                    records.append({"text": " ".join(sentence.words), "wrong": wrong})
                continue
            gold, predicted = set(entities(sentence.tags)), set(entities(tags))
            if gold != predicted:
                missed, invented = (_shown(group, sentence.words) for group in (gold - predicted, predicted - gold))
                records.append({"text": " ".join(sentence.words), "missed": missed, "invented": invented})
        return records[:count]


def _shown(group: set[Entity], words: Sequence[str]) -> list[str]:
    return [f"{entity.type}: {' '.join(words[entity.start : entity.end])}" for entity in sorted(group)]


def _known(labels: Sequence[str]) -> str:
    """Return the entity types, or the tags without prefixes, for a message."""
    if not all(is_chunk_tag(label) for label in labels):
        return ", ".join(labels)
    return "O, " + ", ".join(sorted({split_tag(label)[1] for label in labels} - {""}))


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
        path = find_file(self.data.directory, file=split_file(self.data, split), names=_FILES[split], split=split)
        scheme = "" if split == "train" else self.scheme
        return read_conll(path, tag_column=self.ner.tag_column, word_column=self.ner.word_column, scheme=scheme)

    def notes(self, train: Split) -> list[str]:
        """Return the notes on tags, and how documents are decided."""
        count = len({sentence.document for sentence in train.examples})
        if not self.context:
            return super().notes(train)
        decided = f"{count} of train, each from a line -DOCSTART- or a comment # newdoc to the next"
        if count == len(train.examples) > 1:
            decided = (
                "each sentence of train is one, without context: the file has no line -DOCSTART- and no comment "
                "# newdoc; add such lines where documents begin"
            )
        return [*super().notes(train), f"documents: {decided}"]

    def group_of(self, example: Sentence, index: int) -> Any:
        """Return the index of the document."""
        del index
        return example.document

    def test_splits(self) -> tuple[str, ...]:
        """Return the test set."""
        return ("test",)
