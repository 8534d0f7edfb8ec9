"""Find the project's own kernels in a compiled program, and what each states to cost."""

import dataclasses

from bert_jax.planning.hlo import HloProgram


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Hold a Pallas kernel's call: cycles of one run, and runs a step."""

    name: str
    cycles: int
    times: int


def find_kernels(program: HloProgram) -> list[Kernel]:
    """Return the kernels of one step; to be filled with their stated costs."""
    return [
        Kernel(name=visit.instruction.name, cycles=0, times=visit.times)
        for visit in program.visits()
        if visit.instruction.target == "tpu_custom_call"
    ]
