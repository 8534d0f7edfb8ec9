"""Instances of sentences and sentence pairs, and their predictions: shared by GLUE, SWAG and custom data."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_jax.config.task_options import WINDOWS, DataOptions
from bert_jax.data.tokenization import Tokenizer
from bert_jax.kinds.base import softmax
from bert_jax.rows.truncation import truncate_pair, truncate_single, windows
from bert_jax.tasks.interface import Instances, Outputs, Split, gold_targets
from bert_jax.tasks.metrics import confusion


@dataclasses.dataclass(frozen=True)
class TextExample:
    """One text or two, and a label in the form of the task's kind (None: unlabeled)."""

    text: str
    text_pair: str | None
    label: Any


def instance(a: list[int], b: list[int] | None, *, tokenizer: Tokenizer, data: DataOptions) -> tuple[np.ndarray, int]:
    """Return the ids of `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, and the length of the first part."""
    limit = data.max_seq_length
    if b is None:
        a = truncate_single(a, limit=limit - 2, truncation=data.truncation)
    else:
        a, b = truncate_pair(a, b, limit=limit - 3, truncation=data.truncation)
    ids, first_length = tokenizer.special_ids.frame(a, b)
    return np.array(ids, np.int32), first_length


def text_features(examples: Sequence[TextExample], *, tokenizer: Tokenizer, data: DataOptions) -> Instances:
    """Return one instance per example, or with `data.truncation=windows` one per window of a single text.

    Each window has the label of its text; the output for the text is the mean over its windows (`interface.merged`).
    """
    first = tokenizer.encode_batch([example.text for example in examples])
    second = iter(tokenizer.encode_batch([e.text_pair for e in examples if e.text_pair is not None]))
    instances: list[tuple[np.ndarray, int]] = []
    owners: list[int] = []
    uncut: list[int] = []
    for number, (example, a) in enumerate(zip(examples, first, strict=True)):
        b = None if example.text_pair is None else next(second)
        uncut.append(len(a) + (2 if b is None else len(b) + 3))
        parts = windows(a, limit=data.max_seq_length - 2) if b is None and data.truncation == WINDOWS else [a]
        instances += [instance(part, b, tokenizer=tokenizer, data=data) for part in parts]
        owners += [number] * len(parts)
    labeled = all(example.label is not None for example in examples)
    return Instances(
        ids=[ids for ids, _ in instances],
        first_lengths=np.array([length for _, length in instances], np.int32),
        targets=[examples[owner].label for owner in owners] if labeled else None,
        owners=np.array(owners, np.int64) if data.truncation == WINDOWS else None,
        uncut=np.array(uncut, np.int64),
    )


def predicted_ids(outputs: Outputs) -> np.ndarray:
    """Return the predicted class of each example."""
    return np.array([int(np.argmax(output)) for output in outputs], np.int64)


def label_ids(split: Split) -> np.ndarray:
    """Return the labels of a labeled split."""
    return np.array(gold_targets(split), np.int64)


def predicted_numbers(outputs: Outputs) -> np.ndarray:
    """Return the number predicted for each example, float64."""
    return np.array([float(output[0]) for output in outputs])


def label_numbers(split: Split) -> np.ndarray:
    """Return the gold numbers of a labeled split, float64."""
    return np.array(gold_targets(split), np.float64)


def texts_of(example: TextExample) -> dict[str, str]:
    """Return an example's texts as fields of a JSON object."""
    return {"text": example.text} | ({"text_pair": example.text_pair} if example.text_pair is not None else {})


def classification_mistakes(
    split: Split, outputs: Outputs, *, labels: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """Return the wrong predictions with the largest probability."""
    gold = label_ids(split)
    records = []
    for index, output in enumerate(outputs):
        probabilities = softmax(output)
        prediction = int(np.argmax(probabilities))
        if prediction != gold[index]:
            records.append(
                {
                    "index": index,
                    **texts_of(split.examples[index]),
                    "label": labels[gold[index]],
                    "prediction": labels[prediction],
                    "probability": float(probabilities[prediction]),
                }
            )
    return sorted(records, key=lambda item: -item["probability"])[:count]


def regression_mistakes(split: Split, outputs: Outputs, *, count: int) -> list[dict[str, Any]]:
    """Return the predictions with the largest error."""
    records = [
        {"index": index, **texts_of(example), "label": example.label, "prediction": float(output[0])}
        for index, (output, example) in enumerate(zip(outputs, split.examples, strict=True))
    ]
    return sorted(records, key=lambda item: -abs(item["label"] - item["prediction"]))[:count]


def confusion_table(split: Split, outputs: Outputs, *, labels: Sequence[str]) -> dict[str, Any]:
    """Return the labels and the confusion matrix, with gold labels as rows and predictions as columns."""
    counts = confusion(predicted_ids(outputs), labels=label_ids(split), num_labels=len(labels))
    return {"labels": list(labels), "rows are gold, columns predicted": counts.tolist()}
