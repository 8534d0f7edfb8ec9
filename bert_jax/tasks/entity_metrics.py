"""Entity-level precision, recall and F1, as in `conlleval` of the CoNLL shared tasks.

A predicted entity is correct if its start, its end and its type are.

Tags of entities are `O`, `B-TYPE` and `I-TYPE`, in IOB1 or IOB2; with `E-` (`L-`) for the last word and `S-` (`U-`) for
a single one in BIOES (BILOU), with `M-` for `I-` in BMES. Any sequence of tags is accepted, as a model may produce it:
an `I-` after `O` or after another type begins an entity, as in `conlleval`.

Tags without prefixes (parts of speech) are not entities: each word counts, in total and for each tag.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bert_jax.errors import UserError
from bert_jax.tasks.metrics import PrecisionRecall, f1_from_counts

CHUNKS, PLAIN = "entities", "tags without prefixes"  # the schemes of tags
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"
# Tags of entities in other spellings, as groups "prefix" and "kind".
_OTHER_SPELLINGS = (
    re.compile("(?P<prefix>[BIMELSU])[-_:/](?P<kind>.+)", re.IGNORECASE),
    re.compile("(?P<kind>.+)[-_:/](?P<prefix>[BIMELSU])"),
)
_PREFIXES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}


class Entity(NamedTuple):
    """An entity: words `start` to `end - 1` of a sentence."""

    start: int
    end: int
    type: str


@dataclasses.dataclass(frozen=True)
class EntityScores:
    """The scores over all types (or tags) and for each, the number of words, and the fraction with the correct tag."""

    overall: PrecisionRecall
    by_type: dict[str, PrecisionRecall]
    word_accuracy: float
    words: int = 0


def is_chunk_tag(tag: str) -> bool:
    """Return whether a tag is `O` or has a prefix."""
    prefix, dash, kind = tag.partition("-")
    return tag == "O" or (prefix in _PREFIXES and bool(dash and kind))


def split_tag(tag: str) -> tuple[str, str]:
    """Return the prefix (O, B, I, E or S) and the type of a tag.

    Raises:
      UserError: if the tag is neither `O` nor has a prefix.
    """
    if not is_chunk_tag(tag):
        raise UserError(
            f"tag {tag!r} is not O, B-TYPE or I-TYPE (nor E-, S-, L-, U- or M-TYPE), as other tags are: fix the tag, "
            "or write all tags without prefixes"
        )
    prefix, _, kind = tag.partition("-")
    return _PREFIXES.get(prefix, "O"), kind


def scheme_of(sentences: Iterable[Sequence[str]]) -> str:
    """Return `PLAIN` if no tag has a prefix and not all are `O`, else `CHUNKS`."""
    distinct = {tag for tags in sentences for tag in tags} - {"O"}
    return PLAIN if distinct and not any(is_chunk_tag(tag) for tag in distinct) else CHUNKS


def misspelled(tags: Iterable[str]) -> tuple[str, str] | None:
    """Return one of the tags, which have no prefixes, and what it should be, if all look like misspelled entities.

    "B-PER" with its quotes, b-per, B_PER and PER-B do, next to o. Without B or I among the prefixes they do not. If all
    tags are in quotes, the quotes are wrong.
    """
    bare = {tag: tag.strip(_QUOTES) for tag in sorted(set(tags))}
    inside = {tag: text for tag, text in bare.items() if text not in ("O", "o", "")}
    for spelling in _OTHER_SPELLINGS:
        matches = {tag: match for tag, text in inside.items() if (match := spelling.fullmatch(text))}
        prefixes = {match["prefix"].upper() for match in matches.values()}
        if matches and len(matches) == len(inside) and prefixes & {"B", "I"}:
            first = next(iter(matches))
            return first, f"{matches[first]['prefix'].upper()}-{matches[first]['kind']}"
    return next(iter(bare.items())) if bare and all(bare.values()) and _all_quoted(bare) else None


def _all_quoted(tags: Iterable[str]) -> bool:
    return all(len(tag) > 2 and tag[0] in _QUOTES and tag[-1] in _QUOTES for tag in tags)


def misspelling(tag: str, right: str, *, location: str) -> UserError:
    """Return the error about a tag of `misspelled`."""
    return UserError(
        f"{location}: tag {tag!r} looks like {right!r} in another spelling, as all tags do: fix the tags; those of "
        "entities are B-TYPE, I-TYPE and O"
    )


def normalized_tags(tags: Sequence[str], *, scheme: str) -> list[str]:
    """Return the tags of a sentence, entities in IOB2.

    Raises:
      UserError: if a tag does not belong to the scheme.
    """
    if scheme != CHUNKS:
        return list(tags)
    if wrong := next((tag for tag in tags if tag.endswith("-O") and split_tag(tag)[1] == "O"), ""):
        raise UserError(f"tag {wrong!r} is an entity of type O, which means no entity: write O, or name its type")
    return to_iob2(tags)


def entities(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of one sentence in order."""
    result: list[Entity] = []
    current: tuple[int, str] | None = None  # start and type
    for index, tag in enumerate([*tags, "O"]):
        prefix, kind = split_tag(tag)
        continues = current is not None and prefix in ("I", "E") and kind == current[1]
        if current is not None and not continues:
            result.append(Entity(current[0], index, current[1]))
            current = None
        if prefix != "O" and not continues:
            current = (index, kind)
        if current is not None and prefix in ("E", "S"):
            result.append(Entity(current[0], index + 1, current[1]))
            current = None
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
        by_type=_by_type(hits, predicted=predicted, gold=expected),
        word_accuracy=correct / words if words else 0.0,
        words=words,
    )


def score_words(predictions: Sequence[Sequence[str]], *, gold: Sequence[Sequence[str]]) -> EntityScores:
    """Return the scores of tags without prefixes: each word counts for its tag."""
    pairs = [pair for p, g in zip(predictions, gold, strict=True) for pair in zip(p, g, strict=True)]
    hits = Counter(tag for tag, other in pairs if tag == other)
    predicted, expected = Counter(tag for tag, _ in pairs), Counter(tag for _, tag in pairs)
    overall = f1_from_counts(hits.total(), predicted=len(pairs), gold=len(pairs))
    return EntityScores(
        overall=overall,
        by_type=_by_type(hits, predicted=predicted, gold=expected),
        word_accuracy=overall.recall,
        words=len(pairs),
    )


def _by_type(hits: Counter[str], *, predicted: Counter[str], gold: Counter[str]) -> dict[str, PrecisionRecall]:
    return {
        kind: f1_from_counts(hits[kind], predicted=predicted[kind], gold=gold[kind])
        for kind in sorted(predicted.keys() | gold.keys())
    }


def score_tags(predictions: Sequence[Sequence[str]], *, gold: Sequence[Sequence[str]], scheme: str) -> EntityScores:
    """Return the scores of the scheme."""
    return (score_entities if scheme == CHUNKS else score_words)(predictions, gold=gold)


def summary(scores: EntityScores, *, scheme: str) -> dict[str, float]:
    """Return the metrics of a task as fractions, that which selects the best run first."""
    if scheme == PLAIN:
        by_tag = [score.f1 for score in scores.by_type.values()]
        return {"accuracy": scores.word_accuracy, "macro_f1": sum(by_tag) / max(len(by_tag), 1)}
    overall = scores.overall
    return {
        "f1": overall.f1,
        "precision": overall.precision,
        "recall": overall.recall,
        "accuracy": scores.word_accuracy,
    }


def conlleval_record(scores: EntityScores, *, scheme: str) -> dict[str, float]:
    """Return all that `conlleval` prints, as one flat record of fractions and counts."""
    record: dict[str, float] = summary(scores, scheme=scheme) | {"words": scores.words}
    if scheme == CHUNKS:
        overall = scores.overall
        record |= {"entities": overall.gold, "found": overall.predicted, "correct": overall.hits}
    for kind, score in scores.by_type.items():
        record |= {f"precision_{kind}": score.precision, f"recall_{kind}": score.recall, f"f1_{kind}": score.f1}
        record |= {f"gold_{kind}": score.gold, f"found_{kind}": score.predicted}
    return record
