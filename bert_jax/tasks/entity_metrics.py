"""Score entities as the CoNLL shared tasks do (`conlleval`).

An entity counts where both its ends and its type are right.

Tags are `O`, `B-TYPE`, `I-TYPE`; IOB1 and IOB2 are both read, and so is any sequence a model may produce: an `I-` after
`O` or after another type begins an entity, as in `conlleval`.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from bert_jax.errors import UserError
from bert_jax.tasks.metrics import PrecisionRecall, f1_from_counts


class Entity(NamedTuple):
    """Hold an entity: words `start` to `end - 1` of a sentence."""

    start: int
    end: int
    type: str


@dataclasses.dataclass(frozen=True)
class EntityScores:
    """Hold the scores over all types and of each, and the share of words with the right tag."""

    overall: PrecisionRecall
    by_type: dict[str, PrecisionRecall]
    word_accuracy: float


def split_tag(tag: str) -> tuple[str, str]:
    """Return prefix and type of a tag.

    Raises:
      UserError: if it is neither `O` nor `B-TYPE` nor `I-TYPE`.
    """
    prefix, dash, kind = tag.partition("-")
    if tag == "O":
        return "O", ""
    if prefix not in ("B", "I") or not dash or not kind:
        raise UserError(f"tag {tag!r} is neither O nor B-TYPE nor I-TYPE: convert the file to IOB1 or IOB2")
    return prefix, kind


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of one sentence in order."""
    found: list[Entity] = []
    begun: tuple[int, str] | None = None
    for index, tag in enumerate([*tags, "O"]):
        prefix, kind = split_tag(tag)
        goes_on = begun is not None and prefix == "I" and kind == begun[1]
        if begun is not None and not goes_on:
            found.append(Entity(begun[0], index, begun[1]))
            begun = None
        if prefix != "O" and not goes_on:
            begun = (index, kind)
    return found


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Return the same entities with `B-` at the start of each."""
    result = ["O"] * len(tags)
    for start, end, kind in entities(tags):
        result[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    return result


def score_entities(predictions: Sequence[Sequence[str]], *, gold: Sequence[Sequence[str]]) -> EntityScores:
    """Score sentences of tags against the gold ones, which must have the same lengths."""
    hits, predicted, there = Counter[str](), Counter[str](), Counter[str]()
    words = right = 0
    for mine, theirs in zip(predictions, gold, strict=True):
        found, expected = set(entities(mine)), set(entities(theirs))
        hits.update(entity.type for entity in found & expected)
        predicted.update(entity.type for entity in found)
        there.update(entity.type for entity in expected)
        words += len(theirs)
        right += sum(a == b for a, b in zip(mine, theirs, strict=True))
    return EntityScores(
        overall=f1_from_counts(hits.total(), predicted=predicted.total(), gold=there.total()),
        by_type={
            kind: f1_from_counts(hits[kind], predicted=predicted[kind], gold=there[kind])
            for kind in sorted(predicted.keys() | there.keys())
        },
        word_accuracy=right / words if words else 0.0,
    )
