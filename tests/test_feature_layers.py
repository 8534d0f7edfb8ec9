"""Features come from the layers that Table 7 of the paper names, in training and in prediction."""

import pytest

from bert_jax.config.task_options import FEATURES
from bert_jax.model.feature_layers import feature_layers

pytestmark = pytest.mark.numerics

BASE = {
    "embeddings": [0],
    "second_to_last": [11],
    "last": [12],
    "sum_last_four": [9, 10, 11, 12],
    "concat_last_four": [9, 10, 11, 12],
    "sum_all": list(range(1, 13)),
}


def test_every_name_has_its_layers_in_a_base_model():
    assert {name: list(feature_layers(name, num_layers=12)) for name in FEATURES} == BASE


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_small_models_have_their_last_layers_without_the_embeddings(num_layers: int):
    assert list(feature_layers("sum_last_four", num_layers=num_layers)) == list(range(1, num_layers + 1))
    assert list(feature_layers("second_to_last", num_layers=num_layers)) == [num_layers - 1]
