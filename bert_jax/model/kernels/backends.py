"""The parts of Pallas that our kernels are written with, and whether this version of jax has them.

Any release may move or drop them (jax 0.12 calls the one for GPUs deprecated). Where a part is missing, the plain forms
are computed; `model/kernel_notices.py` reports it when a command starts.
"""

import dataclasses
import importlib
from typing import Any


@dataclasses.dataclass(frozen=True)
class Backend:
    """A module of Pallas and the names that kernels take from it; `known_jax` is a version that has them all."""

    module: str
    names: tuple[str, ...]
    known_jax: str

    def missing(self) -> str | None:
        """Return the first name that this jax lacks, None where it has all."""
        try:
            module = importlib.import_module(self.module)
        except ImportError:
            return self.module
        absent = [name for name in self.names if not hasattr(module, name)]
        return f"{self.module}.{absent[0]}" if absent else None


TPU = Backend(
    "jax.experimental.pallas.tpu", ("CompilerParams", "PrefetchScalarGridSpec", "VMEM", "roll"), known_jax="0.10.2"
)
GPU = Backend("jax.experimental.pallas.triton", ("CompilerParams", "load", "store"), known_jax="0.11.2")

SPLASH = Backend(
    "jax.experimental.pallas.ops.tpu.splash_attention",
    ("BlockSizes", "CausalMask", "FullMask", "MultiHeadMask", "SegmentIds", "make_splash_mha_single_device"),
    known_jax="0.10.2",
)


def _optional(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


# For the kernels of TPUs, which every platform imports: there the plain forms are chosen when a program is lowered.
pltpu = _optional(TPU.module)
splash = _optional(SPLASH.module)
