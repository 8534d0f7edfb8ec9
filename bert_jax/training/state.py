"""Hold what a training step changes."""

from typing import Any

from flax import struct
from jaxtyping import Array, Int


@struct.dataclass
class TrainState:
    """Hold the number of steps taken, the float32 parameters and the optimiser's state; donated and sharded as one."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
