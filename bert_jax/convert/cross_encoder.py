"""A model of pairs of texts as a CrossEncoder of sentence-transformers: a field in config.json."""

from typing import Any

from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.kinds.classification import Classification
from bert_jax.kinds.multilabel import MultiLabel
from bert_jax.kinds.regression import Regression

# What CrossEncoder.predict applies to the logits. Its own default for one label is the sigmoid.
_ACTIVATIONS = {
    Regression: "torch.nn.modules.linear.Identity",
    Classification: "torch.nn.modules.linear.Identity",
    MultiLabel: "torch.nn.modules.activation.Sigmoid",
}


def cross_encoder_fields(source: PretrainedModel) -> dict[str, Any]:
    """Return the fields of config.json that CrossEncoder (sentence-transformers from 4.0) reads.

    Its scores are then those of `predict --task=pair`; of a classification the logits, until `apply_softmax=True`.

    Raises:
      UserError: if the model does not give scores of texts.
    """
    if source.output_kind not in _ACTIVATIONS:
        raise UserError(
            f"--cross_encoder: {source.path} is a {source.architecture}: give a model that was fine-tuned on pairs "
            "(configs/finetune_rerank.py, or finetune_own.py with config.own.text_pair)"
        )
    return {"sentence_transformers": {"activation_fn": _ACTIVATIONS[source.output_kind], "version": "4.0.0"}}
