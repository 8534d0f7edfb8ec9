"""Report, when a command starts, kernels of this machine's chip that are replaced by their plain forms.

The plain forms compute the same values within rounding; they are slower and take more memory.
"""

import jax

from bert_jax.model.chip import gpu_obstacle
from bert_jax.model.kernels import backends

_KERNELS = "the kernels for attention with dropout and for dropout, residual and norm"
_INSTEAD = "their plain forms compute the same, slower"


def kernel_notices(*, dtype: str, implementation: str, backend: str = "") -> list[str]:
    """Return a line for what replaces kernels on `backend` (default: the process's); none where nothing does.

    `implementation` is `model.attention_implementation`: "reference" asks for plain forms. On a GPU "float32" does too,
    since the kernels there are for bfloat16.
    """
    backend = backend or jax.default_backend()
    if implementation == "reference":
        return []
    if backend == "tpu" and (name := backends.TPU.missing()):
        return [_lacking(name, chip="TPUs", known_jax=backends.TPU.known_jax)]
    if backend == "gpu" and dtype != "float32" and (obstacle := gpu_obstacle()):
        if obstacle == backends.GPU.missing():
            return [_lacking(obstacle, chip="GPUs", known_jax=backends.GPU.known_jax)]
        return [f"kernels: {obstacle}, so {_KERNELS} cannot run: {_INSTEAD}"]
    return []


def _lacking(name: str, *, chip: str, known_jax: str) -> str:
    return (
        f"kernels: jax {jax.__version__} has no {name}, with which {_KERNELS} are written for {chip}: {_INSTEAD}; "
        f"jax {known_jax} has it (pip install 'jax=={known_jax}' with the extra of this machine)"
    )
