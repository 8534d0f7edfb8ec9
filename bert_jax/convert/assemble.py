"""Import of tensors with HuggingFace's or TF1's names into our parameter tree. Every tensor must be accounted for."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_jax.config import ModelConfig
from bert_jax.convert.huggingface import WEIGHT_DTYPES, matches
from bert_jax.errors import UserError
from bert_jax.kinds.choice import Choice
from bert_jax.kinds.table import kind_of_model
from bert_jax.model.architecture import Architecture
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import Entry, from_external, nest

_TASK_LAYERS = {"classifier", "qa_outputs"}  # the parts that only fine-tuned classes have
_SHOWN = 6  # names listed in an error message before "and N more"


@dataclasses.dataclass(frozen=True)
class Assembled:
    """Imported parameters."""

    params: dict[str, Any]  # our tree, float32
    architecture: str  # the HuggingFace class with exactly these parts
    dtype: str  # of the tensors in the file
    random: tuple[str, ...] = ()  # parts, or single parameters, that were initialized randomly


def assemble(
    tensors: Mapping[str, np.ndarray],
    *,
    side: str,
    model: ModelConfig,
    architecture: str,
    num_labels: int,
    path: Path,
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
    exact: bool = True,
    report: Callable[[str], None] = print,
) -> Assembled:
    """Return our parameter tree from `tensors` with the names of `side` ("huggingface" or "tf1").

    `architecture` is the class in the model's config, "" if it names none. `num_labels` is the number of labels in the
    config, 0 if it names none. `init_missing` and `drop` contain names of parts (`pooler`), of our parameters, or of
    tensors; wildcards are allowed. With `exact` the result is a model of a HuggingFace class: all of its parts must be
    there, and a pooler that the class does not have is skipped; without it, only the encoder must be there.

    Raises:
      UserError: if a tensor is missing, unexpected, not finite, or has a wrong shape or dtype. The message lists names.
    """
    names = architecture_of(model).names
    known = _known_names(tensors, side=side, model=model, declared=architecture, path=path)
    dropped = {name for name, entry in known.items() if matches(entry.flax, drop) or matches(name, drop)}
    tensors = {name: array for name, array in tensors.items() if name not in dropped and not matches(name, drop)}
    present = {entry.part for name, entry in known.items() if name in tensors}
    parts = _expected_parts(
        present, model=model, declared=architecture, init_missing=init_missing, drop=drop, exact=exact
    )
    if exact:
        parts = _without_unused_pooler(parts, model=model, declared=architecture, path=path, report=report)
    problems = _Problems(path)
    problems.add("unexpected", sorted(name for name in tensors if name not in known), drop="NAME")
    labels = _count_labels(tensors, classifier=names.of(("classifier",)), side=side, default=num_labels)
    if num_labels and labels != num_labels:
        problems.add("of the wrong shape", [f"classifier ({labels} labels, the config names {num_labels})"])
    if kind_of_model(architecture) is Choice and labels != 1 and "classifier" in present:
        problems.add("of the wrong shape", [f"classifier ({labels} outputs, a multiple-choice model has 1)"])
    random: list[Entry] = []
    flat: dict[str, np.ndarray] = {}
    for entry in names.of(parts):
        missing = [name for name in entry.names(side=side, num_layers=model.num_hidden_layers) if name not in tensors]
        if any(matches(name, init_missing) for name in (entry.flax, *missing)) and missing:
            random.append(entry)
        elif missing:
            problems.add_missing(missing, part=entry.part)
        else:
            flat |= _parameter(entry, tensors, side=side, model=model, num_labels=labels, problems=problems)
    problems.raise_if_any()
    # After the checks: if the config's sizes are wrong, the tensors in the file show it before huge ones are made.
    flat |= {entry.flax: random_parameter(entry, model=model, num_labels=labels or 2) for entry in random}
    return Assembled(
        params=nest(flat),
        architecture=name_architecture(parts, model=model, declared=architecture, path=path, exact=exact),
        dtype=_common_dtype(tensors),
        random=summarize_entries(random, model=model),
    )


def _parameter(
    entry: Entry,
    tensors: Mapping[str, np.ndarray],
    *,
    side: str,
    model: ModelConfig,
    num_labels: int,
    problems: "_Problems",
) -> dict[str, np.ndarray]:
    """Return our array of an entry by its name; nothing once there are problems, which it adds to."""
    layer_names = entry.names(side=side, num_layers=model.num_hidden_layers)
    arrays = [tensors[name] for name in layer_names]
    problems.add_shapes(layer_names, arrays, entry.external_shape(model, side=side, num_labels=num_labels))
    if problems:
        return {}
    array = from_external(entry, arrays, side=side, shape=entry.shape(model, num_labels=num_labels))
    if not np.isfinite(array).all():
        problems.add("not finite (damaged)", layer_names)
    return {entry.flax: array}


def summarize_entries(entries: Sequence[Entry], *, model: ModelConfig) -> tuple[str, ...]:
    """Return the names of `entries`: of a part if all of its parameters are there, else of the parameters."""
    names = architecture_of(model).names
    chosen = {entry.flax for entry in entries}
    whole = {part for part in names.parts if {entry.flax for entry in names.of((part,))} <= chosen}
    return tuple(dict.fromkeys(entry.part if entry.part in whole else entry.flax for entry in entries))


def _common_dtype(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the dtype of all tensors if it is the same, else float32, which can represent all values."""
    dtypes = {array.dtype for array in tensors.values()}
    return next((name for name, kind in WEIGHT_DTYPES.items() if dtypes == {kind}), "float32")


def name_architecture(
    parts: Sequence[str], *, model: ModelConfig, declared: str, path: Path, exact: bool = True
) -> str:
    """Return the HuggingFace class that has exactly `parts`, preferably `declared`.

    Without `exact` and without such a class, it is `declared` if its parts are there, else the bare class.

    Raises:
      UserError: if there is none.
    """
    architecture = architecture_of(model)
    classes = architecture.huggingface.classes
    same = [name for name, has in classes.items() if set(has) == set(parts)]
    if set(parts) == {"encoder"}:
        same = [architecture.huggingface.bare_class]
    if declared in same:
        return declared
    if same and _may_be_another(declared, architecture):
        # Two classes consist of encoder, pooler and classifier. Without a declaration it is the sequence classifier.
        return same[0]
    if not exact:
        return declared if set(classes.get(declared, (" ",))) <= set(parts) else architecture.huggingface.bare_class
    expected = classes.get(declared, ("encoder",))
    extra = sorted(set(parts) - set(expected))
    raise UserError(
        f"{path}: no {architecture.title} class has exactly these parts: {', '.join(parts)}; remove parts with "
        f"--drop={','.join(extra)}, or add missing ones with --init_missing=PART"
    )


def _without_unused_pooler(
    parts: tuple[str, ...], *, model: ModelConfig, declared: str, path: Path, report: Callable[[str], None]
) -> tuple[str, ...]:
    """Return `parts` without the pooler, which is reported, if only without it they are those of the class."""
    huggingface = architecture_of(model).huggingface
    if "pooler" not in parts:
        return parts
    rest = tuple(part for part in parts if part != "pooler")
    fitting = [name for name, has in huggingface.classes.items() if set(has) == set(rest)]
    has_class = any(set(has) == set(parts) for has in huggingface.classes.values())
    may_choose = not has_class and declared in ("", huggingface.bare_class)
    unused = declared if declared in fitting else fitting[0] if fitting and may_choose else ""
    if not unused:
        return parts
    report(f"{path}: skipped the pooler, which {unused} does not have")
    return rest


def _may_be_another(declared: str, architecture: Architecture) -> bool:
    """Return whether the parts may decide the class: a declared MaskedLM with all pre-training parts is ForPreTraining.

    A fine-tuned class is always the declared one.
    """
    return not declared or not _TASK_LAYERS & set(architecture.huggingface.classes.get(declared, _TASK_LAYERS))


def random_parameter(entry: Entry, *, model: ModelConfig, num_labels: int) -> np.ndarray:
    """Return an initialized parameter: ones for a scale, zeros for a bias, else the original's truncated normal.

    The random numbers depend only on the parameter's name.
    """
    shape = entry.shape(model, num_labels=num_labels)
    leaf = entry.flax.rpartition("/")[2]
    if leaf in ("scale", "bias"):
        return np.full(shape, leaf == "scale", np.float32)
    generator = np.random.default_rng(zlib.crc32(entry.flax.encode()))
    values = generator.standard_normal(shape, np.float32)
    while (outside := np.abs(values) > 2).any():
        values[outside] = generator.standard_normal(int(outside.sum()), np.float32)
    return values * np.float32(entry.stddev(model))


def _known_names(
    tensors: Mapping[str, np.ndarray], *, side: str, model: ModelConfig, declared: str, path: Path
) -> dict[str, Entry]:
    """Return the parameter of each tensor, the first one of several blocks.

    Two heads may have one name, of which the `declared` class has one.
    """
    if model.num_hidden_layers > len(tensors):
        raise UserError(
            f"{path}: the config says num_hidden_layers={model.num_hidden_layers}, but there are only {len(tensors)} "
            "tensors: restore the config, or copy the weights again"
        )
    architecture = architecture_of(model)
    parts = architecture.huggingface.classes.get(declared, ())
    known: dict[str, Entry] = {}
    for entry in sorted(architecture.names.entries, key=lambda entry: entry.part not in parts):
        for name in entry.names(side=side, num_layers=model.num_hidden_layers):
            known.setdefault(name, entry)
    return known


def _expected_parts(
    present: set[str],
    *,
    model: ModelConfig,
    declared: str,
    init_missing: Sequence[str],
    drop: Sequence[str],
    exact: bool,
) -> tuple[str, ...]:
    architecture = architecture_of(model)
    every, huggingface = architecture.names.parts, architecture.huggingface
    # The bare class is saved with or without its other parts.
    bare = declared == huggingface.bare_class
    expected = {"encoder"} if bare or not exact else set(huggingface.classes.get(declared, ("encoder",)))
    requested = {part for part in every if part in init_missing}
    return tuple(part for part in every if part in present | (expected - set(drop)) | requested)


def _count_labels(tensors: Mapping[str, np.ndarray], *, classifier: Sequence[Entry], side: str, default: int) -> int:
    for entry in classifier:
        array = tensors.get(getattr(entry, side))
        if array is not None and array.ndim:
            return array.shape[0]
    return default


class _Problems:
    """The problems with a model's tensors, collected for a single error message."""

    def __init__(self, path: Path):
        self._path = path
        self._names: dict[str, list[str]] = {}
        self._advice: dict[str, dict[str, None]] = {}
        self._lacks_encoder = False

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, kind: str, names: Sequence[str], **advice: str) -> None:
        if names:
            self._names.setdefault(kind, []).extend(names)
            for flag, value in advice.items():
                self._advice.setdefault(flag, {})[value] = None

    def add_missing(self, names: Sequence[str], *, part: str) -> None:
        self.add("missing", names, **({} if part == "encoder" else {"init_missing": part}))
        self._lacks_encoder |= part == "encoder"

    def add_shapes(self, names: Sequence[str], arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> None:
        for name, array in zip(names, arrays, strict=True):
            if array.dtype not in WEIGHT_DTYPES.values():
                self.add("of the wrong dtype", [f"{name} ({array.dtype}, not {', '.join(WEIGHT_DTYPES)})"])
            elif array.shape != shape:
                self.add("of the wrong shape", [f"{name} ({array.shape}, the config says {shape})"])

    def raise_if_any(self) -> None:
        if not self._names:
            return
        descriptions = []
        for kind, names in self._names.items():
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            descriptions.append(f"{len(names)} {kind}: {', '.join(name[:120] for name in names[:_SHOWN])}{more}")
        flags = " ".join(f"--{flag}={','.join(values)}" for flag, values in self._advice.items())
        if self._lacks_encoder:  # an encoder with random parameters would compute noise: no flag is the remedy
            remedy = "parts of the encoder are missing: give the model's own config, or copy its files again"
        else:
            remedy = f"to load it anyway, type {flags}" if flags else "restore the config, or copy the files again"
        raise UserError(f"{self._path}: the tensors do not fit the config: {'; '.join(descriptions)}; {remedy}")
