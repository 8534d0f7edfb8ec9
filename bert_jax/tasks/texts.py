"""Turn sentences and pairs into instances, and score them: what GLUE, SWAG and own data share."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_jax.data.tokenization import Tokenizer
from bert_jax.kinds.base import softmax
from bert_jax.rows.truncation import truncate_pair
from bert_jax.tasks.interface import Instances, Outputs, Split
from bert_jax.tasks.metrics import confusion


@dataclasses.dataclass(frozen=True)
class TextExample:
    """A sentence or a pair with its label: the target of the task's kind, or None."""

    text: str
    text_pair: str | None
    label: Any


def instance(a: list[int], b: list[int] | None, *, tokenizer: Tokenizer, max_seq_length: int) -> tuple[np.ndarray, int]:
    """Return the ids of `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, and the length of the first part."""
    if b is None:
        a = a[: max_seq_length - 2]
    else:
        a, b = truncate_pair(a, b, limit=max_seq_length - 3)
    ids, first_length = tokenizer.special_ids.frame(a, b)
    return np.array(ids, np.int32), first_length


def text_features(examples: Sequence[TextExample], *, tokenizer: Tokenizer, max_seq_length: int) -> Instances:
    """Return one instance an example."""
    first = tokenizer.encode_batch([example.text for example in examples])
    second = iter(tokenizer.encode_batch([e.text_pair for e in examples if e.text_pair is not None]))
    pairs = [
        instance(a, None if e.text_pair is None else next(second), tokenizer=tokenizer, max_seq_length=max_seq_length)
        for e, a in zip(examples, first, strict=True)
    ]
    labeled = all(example.label is not None for example in examples)
    return Instances(
        ids=[ids for ids, _ in pairs],
        first_lengths=np.array([length for _, length in pairs], np.int32),
        targets=[example.label for example in examples] if labeled else None,
    )


def predicted_ids(outputs: Outputs) -> np.ndarray:
    """Return the best class of each example."""
    return np.array([int(np.argmax(output)) for output in outputs], np.int64)


def label_ids(split: Split) -> np.ndarray:
    """Return the labels of a labeled split."""
    assert split.features.targets is not None
    return np.array(split.features.targets, np.int64)


def numbers(outputs: Outputs) -> np.ndarray:
    """Return the number predicted for each example, float64."""
    return np.array([float(output[0]) for output in outputs])


def numbers_there(split: Split) -> np.ndarray:
    """Return the numbers of a labeled split, float64."""
    return np.array(split.features.targets, np.float64)


def texts_of(example: TextExample) -> dict[str, str]:
    """Return an example's texts as fields of a JSON object."""
    return {"text": example.text} | ({"text_pair": example.text_pair} if example.text_pair is not None else {})


def classification_mistakes(
    split: Split, outputs: Outputs, *, labels: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """Return the examples whose wrong prediction has the largest probability."""
    gold = label_ids(split)
    found = []
    for index, output in enumerate(outputs):
        shares = softmax(output)
        guess = int(np.argmax(shares))
        if guess != gold[index]:
            words = {"label": labels[gold[index]], "prediction": labels[guess]}
            found.append(
                {"index": index, **texts_of(split.examples[index]), **words, "probability": float(shares[guess])}
            )
    return sorted(found, key=lambda item: -item["probability"])[:count]


def regression_mistakes(split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
    """Return the examples that are furthest off."""
    found = [
        {"index": index, **texts_of(example), "label": example.label, "prediction": float(output[0])}
        for index, (output, example) in enumerate(zip(outputs, split.examples, strict=True))
    ]
    return sorted(found, key=lambda item: -abs(item["label"] - item["prediction"]))[:count]


def confusion_table(split: Split, outputs: Outputs, *, labels: Sequence[str]) -> dict[str, Any]:
    """Return labels and counts; rows are gold, columns predicted."""
    counts = confusion(predicted_ids(outputs), labels=label_ids(split), num_labels=len(labels))
    return {"labels": list(labels), "rows are gold, columns predicted": counts.tolist()}
