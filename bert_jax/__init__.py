"""Pre-train BERT from raw text on TPU pods with JAX, fine-tune it, and export it to the HuggingFace ecosystem."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `bert_jax.load` on first use: it imports jax, which the data workers do not need."""
    if name == "load":
        from bert_jax.prediction.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
