"""Entity-level precision, recall and F1, as in `conlleval` of the CoNLL shared tasks.

A predicted entity is correct if its start, its end and its type are.

Tags are `O`, `B-TYPE` and `I-TYPE`, in IOB1 or IOB2. Any sequence of tags is accepted, as a model may produce it:
an `I-` after `O` or after another type begins an entity, as in `conlleval`.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from bert_jax.errors import UserError
from bert_jax.tasks.metrics import PrecisionRecall, f1_from_counts


class Entity(NamedTuple):
    """An entity: words `start` to `end - 1` of a sentence."""

    start: int
    end: int
    type: str


@dataclasses.dataclass(frozen=True)
class EntityScores:
    """The scores over all types and for each type, and the fraction of words with the correct tag."""

    overall: PrecisionRecall
    by_type: dict[str, PrecisionRecall]
    word_accuracy: float


def split_tag(tag: str) -> tuple[str, str]:
    """Return the prefix and the type of a tag.

    Raises:
      UserError: if the tag is not `O`, `B-TYPE` or `I-TYPE`.
    """
    prefix, dash, kind = tag.partition("-")
    if tag == "O":
        return "O", ""
    if prefix not in ("B", "I") or not dash or not kind:
        raise UserError(f"tag {tag!r} is not O, B-TYPE or I-TYPE: convert the file to IOB1 or IOB2")
    return prefix, kind


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of one sentence in order."""
    result: list[Entity] = []
    current: tuple[int, str] | None = None  # start and type
    for index, tag in enumerate([*tags, "O"]):
        prefix, kind = split_tag(tag)
        continues = current is not None and prefix == "I" and kind == current[1]
        if current is not None and not continues:
            result.append(Entity(current[0], index, current[1]))
            current = None
        if prefix != "O" and not continues:
            current = (index, kind)
    return result


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Return the tags in IOB2: the same entities, each starting with `B-`."""
    result = ["O"] * len(tags)
    for start, end, kind in entities(tags):
        result[start:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start - 1)
    return result


def score_entities(predictions: Sequence[Sequence[str]], *, gold: Sequence[Sequence[str]]) -> EntityScores:
    """Return the scores of predicted tags. Each sentence has as many predicted as gold tags."""
    hits, predicted, expected = Counter[str](), Counter[str](), Counter[str]()
    words = correct = 0
    for predicted_tags, gold_tags in zip(predictions, gold, strict=True):
        predicted_entities, gold_entities = set(entities(predicted_tags)), set(entities(gold_tags))
        hits.update(entity.type for entity in predicted_entities & gold_entities)
        predicted.update(entity.type for entity in predicted_entities)
        expected.update(entity.type for entity in gold_entities)
        words += len(gold_tags)
        correct += sum(a == b for a, b in zip(predicted_tags, gold_tags, strict=True))
    return EntityScores(
        overall=f1_from_counts(hits.total(), predicted=predicted.total(), gold=expected.total()),
        by_type={
            kind: f1_from_counts(hits[kind], predicted=predicted[kind], gold=expected[kind])
            for kind in sorted(predicted.keys() | expected.keys())
        },
        word_accuracy=correct / words if words else 0.0,
    )
