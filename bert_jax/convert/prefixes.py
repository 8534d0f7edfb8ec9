"""Prefixes that training code puts before the names of a model's tensors: `module.`, `model.`, a second `bert.`."""

from collections.abc import Callable, Mapping

import numpy as np

from bert_jax.errors import UserError
from bert_jax.model.parameter_names import NameTable


def without_prefix(
    tensors: Mapping[str, np.ndarray], *, names: NameTable, side: str, path: object, report: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """Return the tensors without the prefix before the encoder's names, which is reported.

    The name of the word embeddings shows the prefix; it is removed from all tensors that have it. In HuggingFace's
    names the encoder may also lack the table's own prefix, as in files of the bare class.

    Raises:
      UserError: if there are several encoders.
    """
    anchor = str(getattr(names.of(("encoder",))[0], side))
    ending = anchor.removeprefix(names.prefix) if side == "huggingface" else anchor
    own = anchor.removesuffix(ending)
    separator = "." if side == "huggingface" else "/"
    before = [name.removesuffix(ending) for name in tensors if name.endswith(ending)]
    prefixes = [prefix for prefix in before if not prefix or prefix.endswith(separator)]
    if len(prefixes) > 1:
        drop = f"{prefixes[1]}*" if prefixes[1] not in ("", own) else f"{prefixes[0]}*"
        raise UserError(
            f"{path}: contains {len(prefixes)} encoders, whose tensors begin with "
            f"{', '.join(map(repr, prefixes[:5]))}: load one of them, for example with --drop='{drop}'"
        )
    prefix = prefixes[0] if prefixes else ""
    if prefix in ("", own):
        return dict(tensors)
    prefix = prefix.removesuffix(own) or prefix
    report(f"{path}: the names of the tensors begin with {prefix!r}, which is left out")
    return {name.removeprefix(prefix): array for name, array in tensors.items()}
