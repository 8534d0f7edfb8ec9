"""Lower a function for a GPU that is not there."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType


def lower_for_gpu(function: Callable[..., Any], *arguments: Any) -> str:
    """Return the program as text; skip the test where this jax cannot."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        pytest.skip("this jax cannot lower for a GPU that is not there")
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    with warnings.catch_warnings(), jax.sharding.use_abstract_mesh(mesh):
        # jax 0.12 calls Pallas through Triton deprecated (WORKSPACE.md says why it is used).
        warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
