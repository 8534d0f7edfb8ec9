"""Define what can be predicted with any BERT: fill in masks, next sentence, features a token, embeddings a text."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.config.task_options import FEATURES
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.kinds import choice
from bert_jax.kinds.base import OutputKind
from bert_jax.kinds.classification import Classification
from bert_jax.model.feature_layers import feature_layers
from bert_jax.model.parts import apply_parts
from bert_jax.prediction import rows
from bert_jax.prediction.rows import Example, RowError
from bert_jax.types import EncoderInputs

POOLINGS = ("mean", "cls")


class _Base:
    parts: tuple[str, ...] = ("encoder",)

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.max_length = model.max_position_embeddings

    def single(self, row: Mapping[str, Any]) -> Example:
        return rows.single(row, tokenizer=self.tokenizer, max_length=self.max_length)

    def pair(self, row: Mapping[str, Any], first: str = "text_a", second: str = "text_b") -> Example:
        texts = rows.text_of(row, first), rows.text_of(row, second)
        return rows.pair(*texts, tokenizer=self.tokenizer, max_length=self.max_length)


class FillMask(_Base):
    """Guess each [MASK]: `{"text"}` becomes `{"predictions": [[{"token", "id", "probability"}, ...], ...]}`."""

    parts = ("encoder", "masked_lm")

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer, top_k: int = 5):
        """Return the `top_k` likeliest tokens of each mask."""
        super().__init__(model, tokenizer=tokenizer)
        if top_k < 1:
            raise UserError(f"top_k={top_k}: must be at least 1")
        # Rows of the word embeddings beyond the vocabulary are nobody's token.
        self.top_k = min(top_k, tokenizer.vocab_size)

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], int]:
        """Return the sequence and the number of its masks."""
        example = rows.masked(row, tokenizer=self.tokenizer, max_length=self.max_length)
        return [example], len(example.positions)

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Any:
        """Return probabilities and ids, the likeliest first."""
        wanted = {name: params[name] for name in self.parts}
        logits = apply_parts(wanted, inputs, model=self.model, positions=positions).masked_lm
        assert logits is not None
        return jax.lax.top_k(jax.nn.softmax(logits[..., : self.tokenizer.vocab_size]), self.top_k)

    def result(self, prepared: int, outputs: list[Any]) -> dict[str, Any]:
        """Return the guesses of each mask, in the order of the text."""
        probabilities, ids = outputs[0]
        return {
            "predictions": [
                [
                    {"token": self.tokenizer.pieces[index], "id": int(index), "probability": round(float(share), 6)}
                    for share, index in zip(probabilities[mask], ids[mask], strict=True)
                ]
                for mask in range(prepared)
            ]
        }


class NextSentence(_Base):
    """Judge whether B follows A: `{"text_a", "text_b"}` becomes `{"is_next": probability}`."""

    parts = ("encoder", "pooler", "next_sentence")

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], None]:
        """Return the pair."""
        return [self.pair(row)], None

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Any:
        """Return the probability of column 0, the true next sentence."""
        del positions
        logits = apply_parts({name: params[name] for name in self.parts}, inputs, model=self.model).next_sentence
        assert logits is not None
        return jax.nn.softmax(logits)[:, 0]

    def result(self, prepared: None, outputs: list[Any]) -> dict[str, Any]:
        """Return the probability."""
        del prepared
        return {"is_next": round(float(outputs[0]), 6)}


class TokenFeatures(_Base):
    """Return hidden states a token: a text or a pair becomes `{"tokens", "features": {layer: [[...]]}}`."""

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer, layers: tuple[str, ...] = ("last",)):
        """Return each of `layers`: a name of `FEATURES`, or a number, 0 the embeddings, -1 the last."""
        super().__init__(model, tokenizer=tokenizer)
        self.layers = layers
        self._layers_of = {name: self._numbers(name) for name in layers}

    def _numbers(self, name: str) -> list[int]:
        last = self.model.num_hidden_layers
        if name in FEATURES:
            return list(feature_layers(name, num_layers=last))
        try:
            number = int(name)
            return [range(last + 1)[number]]
        except (ValueError, IndexError):
            raise UserError(
                f"layers={name!r}: choose of {', '.join(FEATURES)}, or a number from {-last - 1} to {last}"
            ) from None

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], Example]:
        """Return the sequence."""
        example = self.pair(row) if "text_b" in row else self.single(row)
        return [example], example

    def compute(
        self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]
    ) -> dict[str, Float[Array, "B T n"]]:
        """Return the combinations of layers."""
        del positions
        only = {"encoder": params["encoder"]}
        states = apply_parts(only, inputs, model=self.model, output_hidden_states=True).all_hidden
        assert states is not None
        return {name: _combine(name, states[jnp.array(numbers)]) for name, numbers in self._layers_of.items()}

    def result(self, prepared: Example, outputs: list[Any]) -> dict[str, Any]:
        """Return tokens and a vector each, of 6 decimals as extract_features.py of the original writes."""
        count = len(prepared.ids)
        return {
            "tokens": self.tokenizer.convert_ids_to_pieces(prepared.ids),
            "features": {name: np.round(outputs[0][name][:count].astype(float), 6).tolist() for name in self.layers},
        }


def _combine(name: str, states: Float[Array, "n B T D"]) -> Float[Array, "B T m"]:
    if name.startswith("concat"):
        return jnp.moveaxis(states, 0, -2).reshape(*states.shape[1:-1], -1)
    return states.sum(0)


class Embed(_Base):
    """Embed a text: `{"text"}` or `{"text_a", "text_b"}` becomes `{"embedding": [...]}`."""

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer, pooling: str = "mean", normalize: bool = True):
        """Pool the last layer by `mean` over all tokens or by `cls`; `normalize` scales to length 1."""
        super().__init__(model, tokenizer=tokenizer)
        if pooling not in POOLINGS:
            raise UserError(f"pooling={pooling!r}: choose one of {', '.join(POOLINGS)}")
        self.pooling, self.normalize = pooling, normalize

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], None]:
        """Return the sequence."""
        return [self.pair(row) if "text_b" in row else self.single(row)], None

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Float[Array, "B D"]:
        """Return the embeddings."""
        del positions
        hidden = apply_parts({"encoder": params["encoder"]}, inputs, model=self.model).hidden
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            real = (inputs.segment_ids > 0).astype(hidden.dtype)
            pooled = jnp.einsum("BT,BTD->BD", real, hidden) / jnp.maximum(real.sum(-1, keepdims=True), 1)
        if self.normalize:
            pooled /= jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-12)
        return pooled

    def result(self, prepared: None, outputs: list[Any]) -> dict[str, Any]:
        """Return the embedding."""
        del prepared
        return {"embedding": np.round(outputs[0].astype(float), 8).tolist()}


class _Labelled(_Base):
    parts = ("encoder", "classifier")

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer, labels: list[str]):
        super().__init__(model, tokenizer=tokenizer)
        self.labels = labels

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Any:
        """Return the logits."""
        del positions
        return apply_parts({name: params[name] for name in self.parts}, inputs, model=self.model).classifier


class Classify(_Labelled):
    """Answer a text or a pair as the kind of the model's head does: `{"label", "probabilities", ...}`, `{"score"}`."""

    parts = ("encoder", "pooler", "classifier")

    def __init__(
        self,
        model: ModelConfig,
        *,
        tokenizer: Tokenizer,
        labels: list[str],
        kind: type[OutputKind] | None,
        pairs: bool = False,
    ):
        """Read `text`, or with `pairs` `text_a` and `text_b`."""
        super().__init__(model, tokenizer=tokenizer, labels=labels)
        self.kind, self.pairs = kind or Classification, pairs

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], None]:
        """Return the sequence."""
        return [self.pair(row) if self.pairs else self.single(row)], None

    def result(self, prepared: None, outputs: list[Any]) -> dict[str, Any]:
        """Return the kind's answer."""
        del prepared
        return self.kind.answer(outputs[0].astype(float), labels=self.labels)


class Choice(_Labelled):
    """Choose an ending: `{"text_a", "choices": [...]}` becomes `{"choice": index, "probabilities"}`."""

    parts = ("encoder", "pooler", "classifier")

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], None]:
        """Return a pair a choice."""
        choices = row.get("choices")
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
            raise RowError("the field 'choices' must be a list of texts")
        build = functools.partial(rows.pair, tokenizer=self.tokenizer, max_length=self.max_length)
        first = rows.text_of(row, "text_a")
        return [build(first, choice) for choice in choices], None

    def result(self, prepared: None, outputs: list[Any]) -> dict[str, Any]:
        """Return the best choice."""
        del prepared
        return choice.Choice.answer(np.array([float(output[0]) for output in outputs]), labels=())
