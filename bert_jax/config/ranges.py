"""Check the ranges of a config's values, each by itself; what depends on two of them is checked in `config.py`."""

import math
from collections.abc import Mapping
from typing import Any

from bert_jax.errors import UserError


def validate_ranges(leaves: Mapping[str, Any]) -> None:
    """Check the ranges that do not depend on another field; `leaves` are by dotted name.

    Raises:
      UserError: for the first value out of its range, naming the field.
    """
    positive = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings "
    positive += "type_vocab_size num_steps gradient_accumulation_steps every keep_latest max_seq_length max_examples "
    positive += "max_grad_norm epsilon initializer_range layer_norm_eps clip_replicas"
    shares = "short_seq_prob heldout_fraction rate mask_share random_share same_share fraction"
    below_one = "hidden_dropout_prob attention_probs_dropout_prob beta1 beta2"
    not_negative = (
        "warmup_steps max_predictions_per_seq batch_size learning_rate weight_decay keep_every num_workers seed "
        "max_nonfinite_steps"
    )
    for path, value in leaves.items():
        name = path.rpartition(".")[2]
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{path}={value}: must be a finite number")
        if name in below_one.split() and not 0 <= value < 1:
            raise UserError(f"config.{path}={value}: must be at least 0 and below 1")
        if name in positive.split() and value <= 0:
            raise UserError(f"config.{path}={value}: must be larger than 0")
        if name in shares.split() and not 0 <= value <= 1:
            raise UserError(f"config.{path}={value}: must lie between 0 and 1")
        if name in not_negative.split() and value < 0:
            raise UserError(f"config.{path}={value}: must not be negative")
    if leaves["train.batch_size"] == 0:
        raise UserError("config.train.batch_size=0: must be larger than 0")
    if leaves["data.heldout_fraction"] >= 0.9:
        raise UserError(f"config.data.heldout_fraction={leaves['data.heldout_fraction']}: must be below 0.9")
    for path, value in leaves.items():
        if path.startswith("mesh.") and value < 1 and value != -1:
            raise UserError(f"config.{path}={value}: give a number of devices, or -1 for the rest")
