"""ModernBERT in NumPy, on the tensors of a HuggingFace folder under their HuggingFace names, to verify exports.

It is independent of our names, parameters and model. Rotations are products of complex numbers.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def huggingface_outputs(
    tensors: Mapping[str, np.ndarray], *, config: Mapping[str, Any], input_ids: np.ndarray, token_type_ids: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the float64 outputs of one unpadded sequence: `hidden` [T, D] and those of the head that exists.

    `tensors` and `config` are those of the folder; the ids are [T]. There are no token types.
    """
    del token_type_ids
    prefix = "model." if any(name.startswith("model.") for name in tensors) else ""
    network = _Network(tensors, prefix=prefix, config=config)
    hidden = network.encode(input_ids)
    outputs = {"hidden": hidden}
    if "decoder.bias" in tensors:
        outputs["masked_lm"] = network.masked_lm(network.transform(hidden))
    if "classifier.weight" in tensors:
        use = str((config.get("architectures") or [""])[0])
        if use.endswith("ForQuestionAnswering"):
            outputs["qa_outputs"] = network.classify(network.transform(hidden))
        elif use.endswith("ForTokenClassification"):
            outputs["classifier"] = network.classify(network.transform(hidden))
        else:
            pooled = hidden.mean(0) if config["classifier_pooling"] == "mean" else hidden[0]
            outputs["classifier"] = network.classify(network.transform(pooled))
    return outputs


class _Network:
    """The layers, in float64."""

    def __init__(self, tensors: Mapping[str, np.ndarray], *, prefix: str, config: Mapping[str, Any]):
        self._tensors, self._prefix, self._config = tensors, prefix, config

    def _times(self, values: np.ndarray, name: str) -> np.ndarray:
        return values @ self._tensors[f"{name}.weight"].astype(np.float64).T

    def _norm(self, values: np.ndarray, name: str) -> np.ndarray:
        centered = values - values.mean(-1, keepdims=True)
        spread = np.sqrt((centered**2).mean(-1, keepdims=True) + self._config["norm_eps"])
        return centered / spread * self._tensors[f"{name}.weight"].astype(np.float64)

    def _activate(self, values: np.ndarray) -> np.ndarray:
        kind = self._config["hidden_activation"]
        if kind == "relu":
            return np.maximum(values, 0)
        if kind == "gelu_new":
            return 0.5 * values * (1 + np.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))
        return 0.5 * values * (1 + np.vectorize(math.erf, otypes=[float])(values / math.sqrt(2)))

    def encode(self, input_ids: np.ndarray) -> np.ndarray:
        words = self._tensors[f"{self._prefix}embeddings.tok_embeddings.weight"]
        hidden = self._norm(words[input_ids].astype(np.float64), f"{self._prefix}embeddings.norm")
        for number in range(self._config["num_hidden_layers"]):
            name = f"{self._prefix}layers.{number}"
            normal = self._norm(hidden, f"{name}.attn_norm") if number else hidden
            is_global = number % self._config["global_attn_every_n_layers"] == 0
            hidden = hidden + self._attend(normal, f"{name}.attn", is_global=is_global)
            normal = self._times(self._norm(hidden, f"{name}.mlp_norm"), f"{name}.mlp.Wi")
            inner, gate = np.split(normal, 2, axis=-1)
            hidden = hidden + self._times(self._activate(inner) * gate, f"{name}.mlp.Wo")
        return self._norm(hidden, f"{self._prefix}final_norm")

    def _attend(self, hidden: np.ndarray, name: str, *, is_global: bool) -> np.ndarray:
        count, heads = len(hidden), self._config["num_attention_heads"]
        size = hidden.shape[-1] // heads
        qkv = self._times(hidden, f"{name}.Wqkv").reshape(count, 3, heads, size)
        query, key, value = qkv.transpose(1, 2, 0, 3)
        position = np.arange(count)
        theta = self._config[f"{'global' if is_global else 'local'}_rope_theta"]
        turns = np.exp(1j * position[:, None] / theta ** (np.arange(0, size, 2) / size))

        def rotated(values: np.ndarray) -> np.ndarray:
            turned = (values[..., : size // 2] + 1j * values[..., size // 2 :]) * turns
            return np.concatenate([turned.real, turned.imag], -1)

        scores = rotated(query) @ rotated(key).swapaxes(1, 2) / math.sqrt(size)
        if not is_global:
            far = np.abs(position[:, None] - position) > self._config["local_attention"] // 2
            scores = np.where(far, -np.inf, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (weights / weights.sum(-1, keepdims=True)) @ value
        return self._times(attended.swapaxes(0, 1).reshape(count, -1), f"{name}.Wo")

    def transform(self, hidden: np.ndarray) -> np.ndarray:
        return self._norm(self._activate(self._times(hidden, "head.dense")), "head.norm")

    def classify(self, hidden: np.ndarray) -> np.ndarray:
        return self._times(hidden, "classifier") + self._tensors["classifier.bias"].astype(np.float64)

    def masked_lm(self, hidden: np.ndarray) -> np.ndarray:
        words = self._tensors[f"{self._prefix}embeddings.tok_embeddings.weight"].astype(np.float32)
        logits = (hidden.astype(np.float32) @ words.T).astype(np.float64)
        return logits + self._tensors["decoder.bias"].astype(np.float64)
