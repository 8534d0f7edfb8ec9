"""The table of output kinds with a head, by the name that configs and files use. An embedding has no head."""

from collections.abc import Mapping

from bert_jax.kinds.base import OutputKind
from bert_jax.kinds.choice import Choice
from bert_jax.kinds.classification import Classification
from bert_jax.kinds.multilabel import MultiLabel
from bert_jax.kinds.regression import Regression
from bert_jax.kinds.span import Span
from bert_jax.kinds.tags import Tags

KINDS: Mapping[str, type[OutputKind]] = {
    kind.name: kind for kind in (Classification, Regression, Tags, Span, Choice, MultiLabel)
}


def kind_of_model(architecture: str, *, problem_type: str = "", num_labels: int = 0) -> type[OutputKind] | None:
    """Return the kind that belongs to a HuggingFace class, or None if the class has no task head.

    Several kinds share ForSequenceClassification; `problem_type` in config.json distinguishes them. If it is missing,
    one label means regression (`BertForSequenceClassification.forward` of transformers).
    """
    kinds = [kind for kind in KINDS.values() if architecture.endswith(kind.huggingface_class)]
    if not problem_type and num_labels == 1:
        problem_type = Regression.problem_type
    return next((kind for kind in kinds if kind.problem_type == problem_type), kinds[0] if kinds else None)
