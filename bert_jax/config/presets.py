"""Shapes of published models, by name."""

import re

from bert_jax.config.groups import ModelConfig
from bert_jax.errors import UserError

# (layers, hidden size, heads) of the models released with google-research/bert, by their usual names.
_FAMILY = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
NAMES = tuple(_FAMILY)


def model_preset(name: str) -> ModelConfig:
    """Return the shape `tiny`, `mini`, `small`, `medium`, `base` or `large`, or of a name like `L-6_H-768_A-3`.

    The second form covers every released small model and every row of the paper's Table 6. Without `_A-3` the heads
    have size 64, as in all released models.

    Raises:
      UserError: for any other name, or without heads for a width that is not a multiple of 64.
    """
    match = re.fullmatch(r"L-(\d+)_H-(\d+)(?:_A-(\d+))?", name)
    if name not in _FAMILY and not match:
        raise UserError(f"model preset {name!r}: choose one of {', '.join(_FAMILY)}, or write it like L-6_H-768_A-12")
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
