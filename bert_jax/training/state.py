"""The state that a training step updates."""

from typing import Any

from flax import struct
from jaxtyping import Array, Int


@struct.dataclass
class TrainState:
    """The number of steps taken, the float32 parameters and the optimizer state; donated and sharded as one tree."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
