"""Entities given as character spans of a text, turned into a tag per word."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax.data.wordpiece import aligned_words
from bert_jax.errors import UserError
from bert_jax.json_forms import shown

_RUN = re.compile(r"\S+")
_TYPE_KEYS = ("label", "type", "entity", "entity_group", "tag")
_START_KEYS, _END_KEYS = ("start", "start_offset", "start_char"), ("end", "end_offset", "end_char")
_FORM = '{"start": 0, "end": 4, "label": "PER"} or [0, 4, "PER"], in characters; the end is not part of the entity'


@dataclasses.dataclass(frozen=True, order=True)
class TextSpan:
    """An entity: characters `start` to `end - 1` of a text."""

    start: int
    end: int
    type: str


def is_spans(value: Any) -> bool:
    """Return whether the field of the tags holds entities as spans: objects, or lists of start, end and type."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping | list) for item in value)


def parse_spans(value: Sequence[Any], *, text: str, location: str) -> list[TextSpan]:
    """Return the entities in the order of the text.

    Raises:
      UserError: if one has another form, lies outside the text, contains only white space or overlaps another one.
    """
    spans = sorted(_span(item, text=text, location=location) for item in value)
    for first, second in itertools.pairwise(spans):
        if second.start < first.end:
            raise UserError(
                f"{location}: the entities {first.start}-{first.end} ({first.type}) and {second.start}-{second.end} "
                f"({second.type}) overlap: a word has one tag; keep one of them"
            )
    return spans


def _span(item: Any, *, text: str, location: str) -> TextSpan:
    values = [_first(item, _START_KEYS), _first(item, _END_KEYS), _first(item, _TYPE_KEYS)]
    start, end, kind = values if isinstance(item, Mapping) else (item if len(item) == 3 else (None, None, None))
    if isinstance(kind, list) and len(kind) == 1:  # Label Studio: {"labels": ["PER"]}
        kind = kind[0]
    if type(start) is not int or type(end) is not int or not isinstance(kind, str) or not kind.strip():
        raise UserError(f"{location}: {str(item)[:80]} is not an entity: write {_FORM}")
    if kind.strip() == "O":
        raise UserError(
            f"{location}: the entity {shown(start)}-{shown(end)} has the label O, which means no entity: leave it out, "
            "or give its type another name"
        )
    if not 0 <= start < end <= len(text) or not text[start:end].strip():
        raise UserError(
            f"{location}: the entity {shown(start)}-{shown(end)} ({kind:.40}) is not in the text of {len(text)} "
            f"characters, or has no letters: write {_FORM}"
        )
    return TextSpan(start, end, kind.strip())


def _first(item: Any, names: Sequence[str]) -> Any:
    if not isinstance(item, Mapping):
        return None
    value = next((item[name] for name in names if name in item), None)
    return item.get("labels") if value is None and names is _TYPE_KEYS else value


def words_and_tags(text: str, spans: Sequence[TextSpan]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words of a text, split as predict does, and their tags in IOB2.

    A word that an entity covers in part has its tag, because prediction tags whole words.
    """
    words: list[str] = []
    tags: list[str] = []
    previous: TextSpan | None = None
    bounds = (
        (run.start() + min(word.starts), run.start() + max(word.ends))
        for run in _RUN.finditer(text)
        for word in aligned_words(run.group(), do_lower_case=False)
    )
    for start, end in bounds:
        covering = next((span for span in spans if span.start < end and start < span.end), None)
        words.append(text[start:end])
        tags.append("O" if covering is None else f"{'I' if covering is previous else 'B'}-{covering.type}")
        previous = covering
    return tuple(words), tuple(tags)
