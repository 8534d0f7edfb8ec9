"""The likelihood of a sentence under a model.

A masked language model gives a pseudo-log-likelihood (Salazar et al. 2020, "Masked Language Model Scoring"): each token
is masked in turn, and the log-probabilities of the tokens are summed. A left-to-right model gives the ordinary
log-likelihood of its tokens. `[CLS]` and `[SEP]` are conditions of both, never scored: `[SEP]` ends a segment of
several sentences in pre-training, so its probability says nothing about one sentence.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bert_jax.config import ModelConfig
from bert_jax.data.tokenization import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.parts import apply_parts
from bert_jax.prediction.rows import Example, RowError
from bert_jax.prediction.tasks import TextTask
from bert_jax.types import EncoderInputs

WORD_L2R, TOKEN, LEFT_TO_RIGHT = "word_l2r", "token", "left_to_right"
SCORINGS = (WORD_L2R, TOKEN)


class SentenceLikelihood(TextTask):
    """Log-likelihood of a text in nats: `{"text"}` -> `{"log_likelihood", "ids"}`.

    `scoring` is one of `SCORINGS`, for masked language models: `token` masks the scored token only; `word_l2r` also
    masks the later tokens of its word (Kauf and Ivanova 2023, "A Better Way to Do Masked Language Model Scoring"), so
    that the end of a rare word does not reveal its beginning. Empty: `word_l2r`, or that of a left-to-right model.
    """

    parts: tuple[str, ...] = ("encoder", "masked_lm")

    def __init__(self, model: ModelConfig, *, tokenizer: Tokenizer, scoring: str = ""):
        """Set the task up.

        Raises:
          UserError: for an unknown scoring, or any for a left-to-right model.
        """
        super().__init__(model, tokenizer=tokenizer)
        if model.attention_direction == "right_to_left":
            raise UserError(
                "sentences are scored from left to right, by a model that reads so, or by a bidirectional one"
            )
        self.is_causal = model.attention_direction == LEFT_TO_RIGHT
        if scoring and self.is_causal:
            raise UserError(f"--scoring={scoring}: a left-to-right model has an ordinary likelihood: omit the flag")
        if scoring and scoring not in SCORINGS:
            raise UserError(f"--scoring={scoring}: choose one of {', '.join(SCORINGS)}")
        self.scoring = LEFT_TO_RIGHT if self.is_causal else scoring or WORD_L2R

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], list[int]]:
        """Return a sequence per scored token, with the first and the last position to mask; for all if left to right.

        Raises:
          RowError: if the text has no token, or more than the model reads. A truncated sentence is another sentence.
        """
        ids = self.tokenizer.encode(row["text"])
        if not ids:
            raise RowError("the text has no token")
        framed, length = self.tokenizer.special_ids.frame(ids)
        if len(framed) > self.max_length:
            raise RowError(f"the text has {len(framed)} tokens, the model reads at most {self.max_length}: shorten it")
        if self.is_causal:
            return [Example(framed, length)], ids
        return [Example(framed, length, span) for span in self._masked_spans(ids)], ids

    def _masked_spans(self, ids: list[int]) -> list[tuple[int, int]]:
        """Return for each token the first and the last position that is masked when it is scored."""
        last = len(ids)
        spans = []
        for position in range(len(ids), 0, -1):
            spans.append((position, last if self.scoring == WORD_L2R else position))
            if self.tokenizer.is_word_start[ids[position - 1]]:
                last = position - 1
        return spans[::-1]

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Any:
        """Return the log-probability of the scored tokens of each sequence."""
        parts = {name: params[name] for name in self.parts}
        if self.is_causal:
            return self._all_tokens(parts, inputs)
        index = jnp.arange(inputs.input_ids.shape[1])[None]
        is_masked = (index >= positions[:, :1]) & (index <= positions[:, 1:2])
        labels = jnp.take_along_axis(inputs.input_ids, positions[:, :1], axis=1)
        masked = dataclasses.replace(inputs, input_ids=jnp.where(is_masked, self.tokenizer.mask_id, inputs.input_ids))
        logits = apply_parts(parts, masked, model=self.model, positions=positions[:, :1]).masked_lm
        assert logits is not None
        return _log_probs(logits, labels)[:, 0]

    def _all_tokens(self, parts: Mapping[str, Any], inputs: EncoderInputs) -> Float[Array, " B"]:
        """Return the sum over the tokens between [CLS] and [SEP]: the logits of a position are of the next token."""
        rows, length = inputs.input_ids.shape
        positions = jnp.broadcast_to(jnp.arange(length - 1)[None], (rows, length - 1))
        logits = apply_parts(parts, inputs, model=self.model, positions=positions).masked_lm
        assert logits is not None
        log_probs = _log_probs(logits, inputs.input_ids[:, 1:])
        is_scored = jnp.arange(1, length)[None] < inputs.segment_ids.sum(1, keepdims=True) - 1
        return jnp.where(is_scored, log_probs, 0).sum(1)

    def result(self, prepared: list[int], outputs: list[Any]) -> dict[str, Any]:
        """Return the sum, and the ids of the scored tokens."""
        return {"log_likelihood": math.fsum(map(float, outputs)), "ids": prepared}


def _log_probs(logits: Float[Array, "B P V"], labels: Int[Array, "B P"]) -> Float[Array, "B P"]:
    return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)


def same_score(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two results of `SentenceLikelihood` are a tie: the same tokens, or equal but for rounding.

    A sum of float32 log-probabilities has a relative error of a few units of 6e-8; batches differ in it.
    """
    return first["ids"] == second["ids"] or math.isclose(
        first["log_likelihood"], second["log_likelihood"], rel_tol=1e-6
    )
