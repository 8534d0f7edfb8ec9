"""Two LSTM language models, one per direction, joined to one encoder whose states are the concatenation of theirs."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.errors import UserError
from bert_jax.model.lstm.encoder import one_of_pair

_DIRECTIONS = ("left_to_right", "right_to_left")


def load_initial(path: str, *, report: Callable[[str], None], **options: Any) -> PretrainedModel:
    """Return the model at `path`, or the pair of LSTM language models at `A,B`; see `load_pretrained`.

    Raises:
      UserError: as `load_pretrained`, and if two models are not such a pair.
    """
    names = path.split(",")
    if len(names) == 1 or Path(path).expanduser().exists():
        return load_pretrained(path, report=report, **options)
    return join([load_pretrained(name, report=report, **options) for name in names], path=path)


def join(sources: Sequence[PretrainedModel], *, path: str) -> PretrainedModel:
    """Return a left-to-right and a right-to-left LSTM language model, in any order, as one model of twice the width.

    Raises:
      UserError: if `sources` are something else, or differ in vocabulary or shape.
    """
    of_direction = {source.model.attention_direction: source for source in sources}
    if (
        len(sources) != 2
        or set(of_direction) != set(_DIRECTIONS)
        or any(source.model.architecture != "lstm" for source in sources)
    ):
        kinds = ", ".join(f"{source.model.architecture} {source.model.attention_direction}" for source in sources)
        raise UserError(
            f"--init={path}: these are {kinds}: give two workdirs, of a left_to_right and of a right_to_left run with "
            "--config.model.architecture=lstm, or one model"
        )
    forward, backward = (of_direction[direction] for direction in _DIRECTIONS)
    prints = [source.require_tokenizer().fingerprint[:12] for source in (forward, backward)]
    if prints[0] != prints[1]:
        raise UserError(
            f"--init={path}: the models have different vocabularies ({', '.join(prints)}): train both on one data set"
        )
    width = {"hidden_size": 2 * forward.model.hidden_size, "attention_direction": "bidirectional"}
    model = dataclasses.replace(forward.model, architecture="lstm_pair", **width)
    if one_of_pair(model, direction="right_to_left") != backward.model:
        raise UserError(f"--init={path}: the models differ in shape or dropout: train both with the same config.model")
    return PretrainedModel(
        path=Path(path),
        kind="workdir",
        model=model,
        architecture="LstmPairModel",
        params={"encoder": {"forward": forward.params["encoder"], "backward": backward.params["encoder"]}},
        dtype="float32",
        tokenizer=forward.tokenizer,
        random=tuple(dict.fromkeys((*forward.random, *backward.random))),
    )
