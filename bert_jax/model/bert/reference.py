"""BERT in NumPy, on the tensors of a HuggingFace folder under their HuggingFace names, to verify exports.

It is independent of our names, parameters and model, so a swapped or transposed tensor changes its outputs.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def huggingface_outputs(
    tensors: Mapping[str, np.ndarray], *, config: Mapping[str, Any], input_ids: np.ndarray, token_type_ids: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the float64 outputs of one unpadded sequence: `hidden` [T, D] and those of the heads that exist.

    `tensors` and `config` are those of the folder; the ids are [T].
    """
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    network = _Network(tensors, prefix=prefix, config=config)
    hidden = network.encode(input_ids, token_type_ids)
    outputs = {"hidden": hidden}
    pooled = None
    if f"{prefix}pooler.dense.weight" in tensors:
        pooled = outputs["pooled"] = np.tanh(network.dense(hidden[0], f"{prefix}pooler.dense"))
    if "cls.predictions.bias" in tensors:
        outputs["masked_lm"] = network.masked_lm(hidden)
    if "cls.seq_relationship.weight" in tensors and pooled is not None:
        outputs["next_sentence"] = network.dense(pooled, "cls.seq_relationship")
    if "classifier.weight" in tensors:
        outputs["classifier"] = network.dense(hidden if pooled is None else pooled, "classifier")
    if "qa_outputs.weight" in tensors:
        outputs["qa_outputs"] = network.dense(hidden, "qa_outputs")
    return outputs


class _Network:
    """The layers, in float64."""

    def __init__(self, tensors: Mapping[str, np.ndarray], *, prefix: str, config: Mapping[str, Any]):
        self._tensors, self._prefix, self._config = tensors, prefix, config

    def _get(self, name: str) -> np.ndarray:
        return self._tensors[name].astype(np.float64)

    def dense(self, values: np.ndarray, name: str) -> np.ndarray:
        return values @ self._get(f"{name}.weight").T + self._get(f"{name}.bias")

    def norm(self, values: np.ndarray, name: str) -> np.ndarray:
        centered = values - values.mean(-1, keepdims=True)
        spread = np.sqrt((centered**2).mean(-1, keepdims=True) + self._config["layer_norm_eps"])
        return centered / spread * self._get(f"{name}.weight") + self._get(f"{name}.bias")

    def activate(self, values: np.ndarray) -> np.ndarray:
        kind = self._config["hidden_act"]
        if kind == "relu":
            return np.maximum(values, 0)
        if kind == "gelu_new":
            return 0.5 * values * (1 + np.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))
        return 0.5 * values * (1 + np.vectorize(math.erf, otypes=[float])(values / math.sqrt(2)))

    def encode(self, input_ids: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
        name = f"{self._prefix}embeddings"
        hidden = self._tensors[f"{name}.word_embeddings.weight"][input_ids].astype(np.float64)
        hidden += self._get(f"{name}.position_embeddings.weight")[: len(input_ids)]
        hidden += self._get(f"{name}.token_type_embeddings.weight")[token_type_ids]
        hidden = self.norm(hidden, f"{name}.LayerNorm")
        for layer in range(self._config["num_hidden_layers"]):
            hidden = self._layer(hidden, f"{self._prefix}encoder.layer.{layer}")
        return hidden

    def _layer(self, hidden: np.ndarray, name: str) -> np.ndarray:
        heads = self._config["num_attention_heads"]
        query, key, value = (
            self.dense(hidden, f"{name}.attention.self.{kind}").reshape(len(hidden), heads, -1).swapaxes(0, 1)
            for kind in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        if self._config.get("is_decoder"):
            scores = np.where(np.tri(len(hidden), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (weights / weights.sum(-1, keepdims=True)) @ value
        attended = attended.swapaxes(0, 1).reshape(hidden.shape)
        attended = self.dense(attended, f"{name}.attention.output.dense")
        hidden = self.norm(hidden + attended, f"{name}.attention.output.LayerNorm")
        inner = self.activate(self.dense(hidden, f"{name}.intermediate.dense"))
        return self.norm(hidden + self.dense(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def masked_lm(self, hidden: np.ndarray) -> np.ndarray:
        hidden = self.activate(self.dense(hidden, "cls.predictions.transform.dense"))
        hidden = self.norm(hidden, "cls.predictions.transform.LayerNorm")
        words = self._tensors[f"{self._prefix}embeddings.word_embeddings.weight"]
        return (hidden.astype(np.float32) @ words.astype(np.float32).T).astype(np.float64) + self._get(
            "cls.predictions.bias"
        )
