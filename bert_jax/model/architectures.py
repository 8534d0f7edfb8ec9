"""The table of architectures, the only file that imports all of them."""

from bert_jax.config import ModelConfig
from bert_jax.errors import UserError
from bert_jax.model.architecture import Architecture
from bert_jax.model.bert.architecture import BERT
from bert_jax.model.lstm.architecture import LSTM, LSTM_PAIR
from bert_jax.model.modernbert.architecture import MODERNBERT

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture for architecture in (BERT, MODERNBERT, LSTM, LSTM_PAIR)
}


def architecture_of(model: ModelConfig) -> Architecture:
    """Return the architecture of a model.

    Raises:
      UserError: if there is no architecture of this name.
    """
    if model.architecture not in ARCHITECTURES:
        raise UserError(f"config.model.architecture={model.architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[model.architecture]
