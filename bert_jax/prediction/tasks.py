"""Prediction tasks: masked tokens, next sentence, token features, classification, multiple choice."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.config.data import MIN_SEQ_LENGTH
from bert_jax.config.task_options import FEATURES, TRUNCATIONS, WINDOWS
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.kinds import choice
from bert_jax.kinds.base import OutputKind
from bert_jax.kinds.classification import Classification
from bert_jax.model.architectures import architecture_of
from bert_jax.model.feature_layers import feature_layers
from bert_jax.model.parts import apply_parts
from bert_jax.prediction import rows
from bert_jax.prediction.rows import Example, RowError
from bert_jax.types import EncoderInputs


class TextTask:
    """A task on texts or pairs of texts. `parts` are those of BERT; an instance has those of its architecture."""

    parts: tuple[str, ...] = ("encoder",)

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer):
        """Set the task up for sequences as long as the position table."""
        self.model, self.tokenizer = model, tokenizer
        self.parts = architecture_of(model).own_parts(self.parts)
        self.max_length = model.max_position_embeddings

    def single(self, row: Mapping[str, Any]) -> Example:
        """Return the sequence of a text."""
        return rows.single(row, tokenizer=self.tokenizer, max_length=self.max_length)

    def pair(self, row: Mapping[str, Any], first: str = "text_a", second: str = "text_b") -> Example:
        """Return the sequence of a pair."""
        texts = rows.text_of(row, first), rows.text_of(row, second)
        return rows.pair(*texts, tokenizer=self.tokenizer, max_length=self.max_length)


class FillMask(TextTask):
    """Masked-token prediction: `{"text"}` -> `{"predictions": [[{"token", "id", "probability"}, ...], ...]}`."""

    parts = ("encoder", "masked_lm")

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer, top_k: int = 5, predicts_next: bool = False):
        """Set the task up to return the `top_k` most probable tokens for each [MASK].

        A model that `predicts_next`, a causal one, reads only what is left of a [MASK].
        """
        super().__init__(model, tokenizer=tokenizer)
        if top_k < 1:
            raise UserError(f"top_k={top_k}: give at least 1")
        # Rows of the word embeddings beyond the vocabulary belong to no token.
        self.top_k = min(top_k, tokenizer.vocab_size)
        self._shift = int(predicts_next)

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], int]:
        """Return the sequence and its number of [MASK] tokens."""
        example = rows.masked(row, tokenizer=self.tokenizer, max_length=self.max_length)
        return [example], len(example.positions)

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Any:
        """Return probabilities and ids, the most probable first."""
        parts = {name: params[name] for name in self.parts}
        positions = positions - self._shift if self._shift else positions  # 0 is [CLS], never a [MASK]
        logits = apply_parts(parts, inputs, model=self.model, positions=positions).masked_lm
        assert logits is not None
        return jax.lax.top_k(jax.nn.softmax(logits[..., : self.tokenizer.vocab_size]), self.top_k)

    def result(self, prepared: int, outputs: list[Any]) -> dict[str, Any]:
        """Return the predictions for each [MASK], in the order of the text."""
        probabilities, ids = outputs[0]
        return {
            "predictions": [
                [
                    {"token": self.tokenizer.pieces[index], "id": int(index), "probability": round(float(value), 6)}
                    for value, index in zip(probabilities[mask], ids[mask], strict=True)
                ]
                for mask in range(prepared)
            ]
        }


class NextSentence(TextTask):
    """Next-sentence prediction: `{"text_a", "text_b"}` -> `{"is_next": probability}`."""

    parts = ("encoder", "pooler", "next_sentence")

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], None]:
        """Return the pair."""
        return [self.pair(row)], None

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Any:
        """Return the probability of class 0, "B follows A"."""
        del positions
        logits = apply_parts({name: params[name] for name in self.parts}, inputs, model=self.model).next_sentence
        assert logits is not None
        return jax.nn.softmax(logits)[:, 0]

    def result(self, prepared: None, outputs: list[Any]) -> dict[str, Any]:
        """Return the probability."""
        del prepared
        return {"is_next": round(float(outputs[0]), 6)}


class TokenFeatures(TextTask):
    """Hidden states of each token: `{"text"}` or a pair -> `{"tokens", "features": {layer: [[...]]}}`."""

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer, layers: tuple[str, ...] = ("last",)):
        """Set the task up. `layers` are names in `FEATURES`, or numbers: 0 are the embeddings, -1 is the last layer."""
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
                f"layers={name!r}: choose from {', '.join(FEATURES)}, or a number from {-last - 1} to {last}"
            ) from None

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], Example]:
        """Return the sequence."""
        example = self.pair(row) if "text_b" in row else self.single(row)
        return [example], example

    def compute(
        self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]
    ) -> dict[str, Float[Array, "B T n"]]:
        """Return the features: one layer, or a sum or concatenation of layers."""
        del positions
        only = {"encoder": params["encoder"]}
        states = apply_parts(only, inputs, model=self.model, output_hidden_states=True).all_hidden
        assert states is not None
        return {name: _combine(name, states[jnp.array(numbers)]) for name, numbers in self._layers_of.items()}

    def result(self, prepared: Example, outputs: list[Any]) -> dict[str, Any]:
        """Return the tokens and a vector for each, with 6 decimals, as in extract_features.py of the original."""
        count = len(prepared.ids)
        return {
            "tokens": self.tokenizer.convert_ids_to_pieces(prepared.ids),
            "features": {name: np.round(outputs[0][name][:count].astype(float), 6).tolist() for name in self.layers},
        }


def _combine(name: str, states: Float[Array, "n B T D"]) -> Float[Array, "B T m"]:
    if name.startswith("concat"):
        return jnp.moveaxis(states, 0, -2).reshape(*states.shape[1:-1], -1)
    return states.sum(0)


class _Labeled(TextTask):
    parts = ("encoder", "classifier")

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer, labels: list[str]):
        super().__init__(model, tokenizer=tokenizer)
        self.labels = labels

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Any:
        """Return the logits."""
        del positions
        return apply_parts({name: params[name] for name in self.parts}, inputs, model=self.model).classifier


class Classify(_Labeled):
    """Classification and regression of texts and pairs. The kind of the model's head forms the answer."""

    parts = ("encoder", "pooler", "classifier")

    def __init__(
        self,
        model: ModelConfig,
        *,
        tokenizer: Tokenizer,
        labels: list[str],
        kind: type[OutputKind] | None,
        pairs: bool = False,
        truncation: str = "",
        max_length: int = 0,
    ):
        """Set the task up to read `text`, or `text_a` and `text_b` with `pairs`.

        `truncation` (config.data.truncation) says what is read of a text of more than `max_length` tokens; 0: what the
        model can read.

        Raises:
          UserError: for an impossible truncation or length.
        """
        super().__init__(model, tokenizer=tokenizer, labels=labels)
        self.kind, self.pairs, self.truncation = kind or Classification, pairs, truncation or "head"
        if self.truncation not in TRUNCATIONS or (pairs and self.truncation == WINDOWS):
            allowed = TRUNCATIONS[:-1] if pairs else TRUNCATIONS
            raise UserError(f"--truncation={truncation}: choose one of {', '.join(allowed)}")
        if max_length and not MIN_SEQ_LENGTH <= max_length <= self.max_length:
            raise UserError(
                f"--max_seq_length={max_length}: give a number from {MIN_SEQ_LENGTH} to {self.max_length}, the most "
                "that the model reads"
            )
        self.max_length = max_length or self.max_length

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], None]:
        """Return the sequence, or the windows of a text."""
        options: dict[str, Any] = {"tokenizer": self.tokenizer, "max_length": self.max_length}
        if self.pairs:
            texts = rows.text_of(row, "text_a"), rows.text_of(row, "text_b")
            return [rows.pair(*texts, truncation=self.truncation, **options)], None
        if self.truncation == WINDOWS:
            return rows.text_windows(row, **options), None
        return [rows.single(row, truncation=self.truncation, **options)], None

    def result(self, prepared: None, outputs: list[Any]) -> dict[str, Any]:
        """Return the kind's answer, for the mean of the logits over windows."""
        del prepared
        return self.kind.answer(np.mean(np.stack(outputs).astype(float), axis=0), labels=self.labels)


class Choice(_Labeled):
    """Multiple choice: `{"text_a", "choices": [...]}` -> `{"choice": index, "probabilities"}`."""

    parts = ("encoder", "pooler", "classifier")

    def __init__(
        self,
        model: ModelConfig,
        *,
        tokenizer: Tokenizer,
        labels: list[str],
        truncation: str = "",
        max_length: int = 0,
    ):
        """Set the task up; longer pairs are truncated to `max_length` tokens (0: what the model can read)."""
        super().__init__(model, tokenizer=tokenizer, labels=labels)
        self.truncation, self.max_length = truncation or "head", max_length or self.max_length

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], None]:
        """Return one pair per choice."""
        choices = row.get("choices")
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
            raise RowError("the field 'choices' must be a list of texts")
        build = functools.partial(
            rows.pair, tokenizer=self.tokenizer, max_length=self.max_length, truncation=self.truncation
        )
        first = rows.text_of(row, "text_a")
        return [build(first, choice) for choice in choices], None

    def result(self, prepared: None, outputs: list[Any]) -> dict[str, Any]:
        """Return the best choice."""
        del prepared
        return choice.Choice.answer(np.array([float(output[0]) for output in outputs]), labels=())
