"""LSTM language models (as in ELMo, Peters et al. 2018): their entries in the table of architectures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config import ModelConfig
from bert_jax.errors import UserError
from bert_jax.model.architecture import Architecture, HuggingFaceFormat
from bert_jax.model.bert.heads import MaskedLMHead, Pooler
from bert_jax.model.lstm.encoder import LstmEncoder, LstmPairEncoder
from bert_jax.model.parameter_names import Entry, NameTable

_SHAPE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "hidden_act",
    "layer_norm_eps",
    "attention_direction",
)
_GATES = "ifgo"
_TASKS = {
    "ForSequenceClassification": ("encoder", "pooler", "classifier"),
    "ForMultipleChoice": ("encoder", "pooler", "classifier"),
    "ForTokenClassification": ("encoder", "classifier"),
    "ForQuestionAnswering": ("encoder", "qa_outputs"),
}
_PRETRAINING = {"ForPreTraining": ("encoder", "masked_lm"), "Model": ("encoder",)}


def _entry(flax: str, *axes: str) -> Entry:
    """Return the entry of a parameter, which has its own name elsewhere: no other format has these models."""
    return Entry(flax, huggingface=flax.replace("/", "."), tf1="", axes=axes)


def _encoder(prefix: str, *, width: str, layers: tuple[str, ...]) -> list[Entry]:
    entries = [_entry(f"{prefix}word_embeddings", "V", width)]
    for gate in _GATES:
        entries.append(_entry(f"{prefix}layers/lstm/i{gate}/kernel", *layers, width, width))
        entries.append(_entry(f"{prefix}layers/lstm/h{gate}/kernel", *layers, width, width))
        entries.append(_entry(f"{prefix}layers/lstm/h{gate}/bias", *layers, width))
    return entries


_HEADS = [
    _entry("pooler/dense/kernel", "D", "D"),
    _entry("pooler/dense/bias", "D"),
    _entry("masked_lm/transform/kernel", "D", "D"),
    _entry("masked_lm/transform/bias", "D"),
    _entry("masked_lm/layer_norm/scale", "D"),
    _entry("masked_lm/layer_norm/bias", "D"),
    _entry("masked_lm/bias", "V"),
    _entry("classifier/kernel", "D", "C"),
    _entry("classifier/bias", "C"),
    _entry("qa_outputs/kernel", "D", "2"),
    _entry("qa_outputs/bias", "2"),
]


def train_flops_per_row(
    model: ModelConfig,
    *,
    max_seq_length: int,
    max_predictions: int,
    instances: int | float = 1,
    attended_share: float = 1.0,
) -> float:
    """Return the model FLOPs of one sequence, forward and backward; the arguments are those of `TrainFlops`.

    48 T D^2 per layer (four gates of two products), 6 P (V D + D^2) for the language model's head.
    """
    del instances, attended_share
    width = model.hidden_size
    layers = 48 * max_seq_length * width**2 * model.num_hidden_layers
    return float(layers + 6 * max_predictions * (model.vocab_size * width + width**2))


def _pair_flops(model: ModelConfig, **sizes: Any) -> float:
    """Return the FLOPs of a pair: of two models of half the width."""
    return train_flops_per_row(model, **sizes) / 2


def _read_fields(fields: Mapping[str, Any], file: Path) -> ModelConfig:
    del fields
    raise UserError(f"{file}: HuggingFace has no such LSTM model: give the workdir of its run")


def _write_fields(model: ModelConfig) -> dict[str, Any]:
    raise UserError(f"model.architecture={model.architecture} cannot be exported: HuggingFace has no such class")


def _outputs(
    tensors: Mapping[str, np.ndarray], *, config: Mapping[str, Any], input_ids: np.ndarray, token_type_ids: np.ndarray
) -> dict[str, np.ndarray]:
    del tensors, config, input_ids, token_type_ids
    raise UserError("LSTM models are not exported")


def _format(prefix: str, classes: Mapping[str, tuple[str, ...]]) -> HuggingFaceFormat:
    return HuggingFaceFormat(
        class_prefix=prefix,
        classes={f"{prefix}{use}": parts for use, parts in classes.items()},
        read_fields=_read_fields,
        write_fields=_write_fields,
        outputs=_outputs,
    )


LSTM = Architecture(
    name="lstm",
    title="LSTM language model",
    citation="as in ELMo, Peters et al. 2018",
    encoder=LstmEncoder,
    heads={"pooler": Pooler, "masked_lm": MaskedLMHead},
    names=NameTable((*_encoder("encoder/", width="D", layers=()), *_HEADS), prefix="lstm."),
    shape_fields=_SHAPE_FIELDS,
    train_flops_per_row=train_flops_per_row,
    huggingface=_format("Lstm", {**_PRETRAINING, **_TASKS}),
)

LSTM_PAIR = Architecture(
    name="lstm_pair",
    title="pair of LSTM language models",
    citation="as in ELMo, Peters et al. 2018",
    encoder=LstmPairEncoder,
    heads={"pooler": Pooler},
    names=NameTable(
        (
            *_encoder("encoder/forward/", width="D/2", layers=("L",)),
            *_encoder("encoder/backward/", width="D/2", layers=("L",)),
            *(entry for entry in _HEADS if entry.part != "masked_lm"),
        ),
        prefix="lstm_pair.",
    ),
    shape_fields=_SHAPE_FIELDS,
    train_flops_per_row=_pair_flops,
    huggingface=_format("LstmPair", {"ForPreTraining": ("encoder",), "Model": ("encoder",), **_TASKS}),
)
