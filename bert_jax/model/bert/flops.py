"""The model FLOPs of BERT, for MFU and plans."""

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

    6 T (4 D^2 + 2 D F) + 12 T^2 D per layer, 6 P (V D + D^2) for the MLM head, 6 D^2 per pooled instance. Embedding
    look-ups count as 0. BERT-Large at 128 with 20 predictions: 241 GFLOP.
    """
    width, inner, length = model.hidden_size, model.intermediate_size, max_seq_length
    layer = 6 * length * (4 * width**2 + 2 * width * inner) + 12 * attended_share * length**2 * width
    head = 6 * max_predictions * (model.vocab_size * width + width**2) + 6 * instances * width**2
    return float(model.num_hidden_layers * layer + head)
