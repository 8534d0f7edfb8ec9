"""Shapes of published models, by name."""

import re

from bert_jax.config.groups import ModelConfig
from bert_jax.errors import UserError, choose_one

# (layers, hidden size, heads) of the models released with google-research/bert, by their usual names.
_FAMILY = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
# (layers, hidden size, heads, feed-forward size) of ModernBERT (Warner et al. 2024, Table 3) and of Ettin's encoders
# (Weller et al. 2025, Table 1).
MODERNBERT_SHAPES = {
    "modernbert-base": (22, 768, 12, 1152),
    "modernbert-large": (28, 1024, 16, 2624),
    "ettin-17m": (7, 256, 4, 384),
    "ettin-32m": (10, 384, 6, 576),
    "ettin-68m": (19, 512, 8, 768),
    "ettin-150m": (22, 768, 12, 1152),
    "ettin-400m": (28, 1024, 16, 2624),
    "ettin-1b": (28, 1792, 28, 3840),
}
NAMES = (*_FAMILY, *MODERNBERT_SHAPES)


def model_preset(name: str) -> ModelConfig:
    """Return the shape of one of `NAMES`, or of a name like `L-6_H-768_A-3`.

    The second form covers every released small model and every row of the paper's Table 6. Without `_A-3` the heads
    have size 64, as in all released models.

    Raises:
      UserError: for any other name, or without heads for a width that is not a multiple of 64.
    """
    if name in MODERNBERT_SHAPES:
        return _modernbert(name)
    match = re.fullmatch(r"L-(\d+)_H-(\d+)(?:_A-(\d+))?", name)
    if name not in _FAMILY and not match:
        raise UserError(f"model preset {name!r}: {choose_one(name, NAMES)}, or write it like L-6_H-768_A-12")
    layers, hidden, heads = _FAMILY[name] if not match else (int(size or 0) for size in match.groups())
    if match and match[3] is None:
        heads, rest = divmod(hidden, 64)
        if rest:
            raise UserError(
                f"model preset {name!r}: {hidden} is not a multiple of 64: add the number of heads, as in {name}_A-4"
            )
    return ModelConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden
    )


def _modernbert(name: str) -> ModelConfig:
    layers, hidden, heads, inner = MODERNBERT_SHAPES[name]
    return ModelConfig(
        architecture="modernbert",
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=inner,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=8192,
        local_rope_theta=160_000.0 if name.startswith("ettin") else 10_000.0,
        classifier_pooling="mean",
    )
