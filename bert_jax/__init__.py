"""Pre-train BERT from raw text on TPU pods with JAX, fine-tune it, hand it to the HuggingFace ecosystem."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `bert_jax.load` when it is asked for: it brings jax, which the data workers do without."""
    if name == "load":
        from bert_jax.prediction.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
