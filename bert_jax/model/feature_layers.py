"""The layers used as features, by the names of Table 7 (paper section 5.3)."""

from collections.abc import Mapping

# First and last layer; 0 means the embeddings, negative numbers count from the last layer (-1).
_RANGES: Mapping[str, tuple[int, int]] = {
    "embeddings": (0, 0),
    "second_to_last": (-2, -2),
    "last": (-1, -1),
    "sum_last_four": (-4, -1),
    "concat_last_four": (-4, -1),
    "sum_all": (1, -1),
}


def feature_layers(name: str, *, num_layers: int) -> range:
    """Return the numbers of the layers for `name`, one of `config.task_options.FEATURES`.

    0 means the embeddings. In a model with fewer than four layers, the last four are all layers without the embeddings.
    """
    first, last = (number % (num_layers + 1) if number >= -num_layers - 1 else 0 for number in _RANGES[name])
    return range(max(first, 1) if first < last else first, last + 1)
