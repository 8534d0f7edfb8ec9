"""Tagging of custom data: a tag per word, or entities as character spans of a text."""

import dataclasses
import functools
from collections.abc import Sequence

from bert_jax.errors import UserError
from bert_jax.tasks.conll import Sentence
from bert_jax.tasks.entity_metrics import (
    CHUNKS,
    PLAIN,
    misspelled,
    misspelling,
    normalized_tags,
    scheme_of,
    split_tag,
)
from bert_jax.tasks.ner import TagTask
from bert_jax.tasks.own_labels import configured_labels
from bert_jax.tasks.own_records import OwnTask, Record, read_records
from bert_jax.tasks.own_spans import is_spans, parse_spans, words_and_tags

# Columns that are read if a default of the config is missing: names in HuggingFace datasets and annotation tools.
_OTHER_NAMES = {"words": ("tokens", "text"), "tags": ("ner_tags", "pos_tags", "entities", "spans", "label", "labels")}


@dataclasses.dataclass(frozen=True)
class _Raw:
    words: tuple[str, ...]
    tags: tuple[str, ...] | None  # None: unlabeled
    location: str


class OwnTagTask(OwnTask, TagTask):
    """Tagging. A record has words and a tag for each: entities, tags without prefixes, or the numbers of tags.

    Or it has a text and its entities: `{"start", "end", "label"}` or `[start, end, label]`, in characters.
    """

    def read(self, split: str) -> Sequence[Sentence]:
        """Return the sentences of a split. Only test may lack tags."""
        raws = [self._raw(record, split=split) for record in read_records(self.data, split=split)]
        scheme = scheme_of(raw.tags for raw in raws if raw.tags is not None) if split == "train" else self.scheme
        tags = (tag for raw in raws for tag in raw.tags or ())
        if split == "train" and scheme == PLAIN and (wrong := misspelled(tags)):
            location = next(raw.location for raw in raws if wrong[0] in (raw.tags or ()))
            raise misspelling(*wrong, location=location)
        return [_sentence(raw, number, scheme=scheme) for number, raw in enumerate(raws)]

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:  # type: ignore[override]
        """Return the labels in the config if all of train's tags are among them, else those of train."""
        names = configured_labels(self.own)
        of_train = super().labels
        if self.scheme != CHUNKS:
            return names or of_train
        types = {split_tag(name)[1] for name in (*names, *of_train)} - {""}
        complete = {"O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")}
        return names if set(names) == complete else tuple(sorted(complete, key=_by_type))

    @functools.cached_property
    def _has_spans(self) -> bool:
        """Return whether train has entities as spans: then a record may have none, and one of test lacks the field."""
        records = read_records(self.data, split="train")
        return any(is_spans(record.fields.get(_column(record, self.own.label))) for record in records)

    def _raw(self, record: Record, *, split: str) -> _Raw:
        text_column, tag_column = _column(record, self.own.text), _column(record, self.own.label)
        value = record.fields.get(tag_column)
        text = record.fields.get(text_column)
        if isinstance(text, str) and (is_spans(value) or (value in (None, []) and self._has_spans)):
            spans = parse_spans(value or [], text=text, location=record.location)
            words, tags = words_and_tags(text, spans)
            if value is None and split != "test":
                record.words(tag_column, option="label")  # raises: the field is missing or null
            return _Raw(words, tags if value is not None else None, record.location)
        words = record.words(text_column, option="text")
        if split == "test" and value in (None, ""):
            return _Raw(words, None, record.location)
        tags = self._named(record.words(tag_column, option="label"), record=record)
        if len(words) != len(tags):
            raise UserError(f"{record.location}: {len(words)} words but {len(tags)} tags: give one tag per word")
        return _Raw(words, tags, record.location)

    def _named(self, tags: tuple[str, ...], *, record: Record) -> tuple[str, ...]:
        """Return the tags. Numbers are the indices of the labels in the config."""
        names = configured_labels(self.own)
        if not names or not tags or not all(tag.isdecimal() and tag not in names for tag in tags):
            return tags
        if wrong := next((tag for tag in tags if int(tag) >= len(names)), ""):
            raise UserError(
                f"{record.location}: tag {wrong} has no name: config.own.labels names {len(names)} tags, from 0 to "
                f"{len(names) - 1}"
            )
        return tuple(names[int(tag)] for tag in tags)


def _column(record: Record, name: str) -> str:
    if name in record.fields:
        return name
    return next((other for other in _OTHER_NAMES.get(name, ()) if other in record.fields), name)


def _by_type(label: str) -> tuple[str, str]:
    prefix, kind = split_tag(label)
    return kind, prefix


def _sentence(raw: _Raw, number: int, *, scheme: str) -> Sentence:
    if raw.tags is None:
        return Sentence(raw.words, ("O",) * len(raw.words), number, location=raw.location, labeled=False)
    if "" in raw.tags:
        raise UserError(f"{raw.location}: an empty tag: write O for a word that is in no entity")
    try:
        return Sentence(raw.words, tuple(normalized_tags(raw.tags, scheme=scheme)), number, raw.tags, raw.location)
    except UserError as error:
        raise UserError(f"{raw.location}: {error}") from error
