"""The model FLOPs of ModernBERT, for MFU and plans."""

from bert_jax.config import ModelConfig


def train_flops_per_row(
    model: ModelConfig,
    *,
    max_seq_length: int,
    max_predictions: int,
    instances: int | float = 1,
    attended_share: float = 1.0,
) -> float:
    """Return the model FLOPs of one sequence, forward and backward; the arguments are those of `TrainFlops`.

    6 T (4 D^2 + 3 D F) per layer, 12 D per pair of positions that attend to each other, 6 P (V D + D^2) for the MLM
    head. Embedding look-ups count as 0.
    """
    width, inner, length = model.hidden_size, model.intermediate_size, max_seq_length
    pairs = attended_share * length**2
    near = min(pairs, _near_pairs(length / max(instances, 1), reach=model.local_attention // 2) * max(instances, 1))
    layers = model.num_hidden_layers
    global_layers = -(-layers // model.global_attn_every_n_layers)
    attention = 12 * width * (global_layers * pairs + (layers - global_layers) * near)
    head = 6 * max_predictions * (model.vocab_size * width + width**2)
    return float(layers * 6 * length * (4 * width**2 + 3 * width * inner) + attention + head)


def _near_pairs(length: float, *, reach: int) -> float:
    """Return the number of pairs of positions at most `reach` apart in an instance of `length` tokens."""
    return length**2 if length <= reach + 1 else length * (2 * reach + 1) - reach * (reach + 1)
