"""Embeddings of texts, by the settings of sentence-transformers where the model's folder has them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.convert.sentence_transformers import POOLINGS, EmbeddingSettings
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.parts import apply_parts
from bert_jax.prediction.rows import Example, text_of
from bert_jax.prediction.tasks import TextTask
from bert_jax.types import EncoderInputs

_ACTIVATIONS = {
    "Tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
    "GELU": lambda values: jax.nn.gelu(values, approximate=False),
    "Sigmoid": jax.nn.sigmoid,
    "Identity": lambda values: values,
}


class Embed(TextTask):
    """Embeddings of texts: `{"text"}` or `{"text_a", "text_b"}` -> `{"embedding": [...]}`."""

    def __init__(
        self,
        model: ModelConfig,
        *,
        tokenizer: Tokenizer,
        settings: EmbeddingSettings | None = None,
        path: Path | str = "the model",
        pooling: str = "",
        normalize: bool | None = None,
        prompt: str = "",
        size: int = 0,
    ):
        """Set up pooling of the last layer and what follows it.

        `pooling` is one of `POOLINGS`, or several joined by "+", which replaces the pooling and the layers of
        `settings`; `normalize` scales vectors to length 1. Without settings they are the mean and True. `prompt` is the
        name of one of the settings' prompts, "" for their default; `size` keeps the first numbers of an embedding.

        Raises:
          UserError: for an unknown pooling, prompt or size, or if the settings have a module that cannot be computed.
        """
        super().__init__(model, tokenizer=tokenizer)
        self._settings = settings or EmbeddingSettings(normalize=True)
        if pooling:
            poolings = tuple(pooling.split("+"))
            if not set(poolings) <= set(POOLINGS):
                raise UserError(f"pooling={pooling!r}: choose from {', '.join(POOLINGS)}, several joined by +")
            self._settings = dataclasses.replace(self._settings, poolings=poolings, layers=(), unsupported="")
        elif self._settings.unsupported:
            raise UserError(
                f"{path}: the embeddings of this sentence-transformers model need its module "
                f"{self._settings.unsupported}, which is not computed here: type --pooling=mean for other embeddings"
            )
        if size:
            hidden = model.hidden_size
            self._settings = self._settings.truncated(size, hidden_size=hidden, option="embedding_size")
        self._poolings, self._layers = self._settings.poolings, self._settings.layers
        self._prompt = self._settings.prompt_called(prompt)
        if "cls" in self._poolings and model.attention_direction == "left_to_right":
            raise UserError(
                "pooling=cls: the [CLS] of a left-to-right model sees only itself: type --pooling=lasttoken"
            )
        self._normalize = self._settings.normalize if normalize is None else normalize
        if self._settings.max_seq_length:
            self.max_length = min(self.max_length, self._settings.max_seq_length)
        self.size = self._settings.size(model.hidden_size)

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], None]:
        """Return the sequence."""
        names = ("text_a", "text_b") if "text_b" in row else ("text",)
        texts = {name: text_of(row, name) for name in names}
        texts[names[0]] = self._prompt + texts[names[0]]
        if self._settings.lowercase:
            texts = {name: text.lower() for name, text in texts.items()}
        return [self.pair(texts) if len(texts) == 2 else self.single(texts)], None

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Float[Array, "B n"]:
        """Return the embeddings."""
        del positions
        hidden = apply_parts({"encoder": params["encoder"]}, inputs, model=self.model).hidden
        real = (inputs.segment_ids > 0).astype(hidden.dtype)
        pooled = jnp.concatenate([pool(hidden, real, pooling=pooling) for pooling in self._poolings], -1)
        for layer in self._layers:
            pooled = _ACTIVATIONS[layer.activation](
                jnp.dot(pooled, layer.kernel, precision="highest") + layer.bias[None]
            )
        if self._normalize:
            pooled /= jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
        return pooled

    def result(self, prepared: None, outputs: list[Any]) -> dict[str, Any]:
        """Return the embedding."""
        del prepared
        return {"embedding": np.round(outputs[0].astype(float), 8).tolist()}


def pool(hidden: Float[Array, "B T D"], real: Float[Array, "B T"], *, pooling: str) -> Float[Array, "B D"]:
    """Return the pooled states of the real tokens, as Pooling of sentence-transformers."""
    count = jnp.maximum(real.sum(-1, keepdims=True), 1)
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "lasttoken":
        last = (count[..., None] - 1).astype(jnp.int32)
        return jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    if pooling == "max":
        return jnp.where(real[..., None] > 0, hidden, -jnp.inf).max(1)
    weights = real * jnp.arange(1, real.shape[1] + 1)[None] if pooling == "weightedmean" else real
    total = jnp.einsum("BT,BTD->BD", weights, hidden)
    if pooling == "weightedmean":
        count = jnp.maximum(weights.sum(-1, keepdims=True), 1)
    return total / (jnp.sqrt(count) if pooling == "mean_sqrt_len_tokens" else count)
