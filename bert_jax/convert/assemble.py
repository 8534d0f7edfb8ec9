"""Put tensors that came in under foreign names into our tree: every one accounted for, none guessed."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
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
_SHOWN = 6  # names listed in an error line before "and N more"


@dataclasses.dataclass(frozen=True)
class Assembled:
    """Hold our tree of float32 arrays, the HuggingFace class with exactly its parts, and the width it came in."""

    params: dict[str, Any]
    architecture: str
    dtype: str


def assemble(
    tensors: Mapping[str, np.ndarray],
    *,
    side: str,
    model: ModelConfig,
    architecture: str,
    num_labels: int,
    where: Path,
    init_missing: Sequence[str] = (),
    drop: Sequence[str] = (),
) -> Assembled:
    """Return our tree of `tensors`, which `side` names ("huggingface" or "tf1").

    `architecture` is the class that the source says it is, "" if it says nothing; `num_labels` the labels that it
    names, 0 likewise. `init_missing` and `drop` name parts
    (`pooler`), parameters of ours or tensors of theirs; wildcards are allowed.

    Raises:
      UserError: if a tensor is missing, unexpected, of another shape or type, or not finite; the line lists names.
    """
    names = architecture_of(model).names
    known = _known_names(tensors, side=side, model=model, where=where)
    dropped = {theirs for theirs, entry in known.items() if matches(entry.flax, drop) or matches(theirs, drop)}
    found = {name: array for name, array in tensors.items() if name not in dropped and not matches(name, drop)}
    present = {entry.part for name, entry in known.items() if name in found}
    wanted = _wanted_parts(present, model=model, declared=architecture, init_missing=init_missing, drop=drop)
    problems = _Problems(where)
    problems.add("unexpected", sorted(name for name in found if name not in known), drop="NAME")
    labels = _count_labels(found, classifier=names.of(("classifier",)), side=side, default=num_labels)
    if num_labels and labels != num_labels:
        problems.add("of another shape", [f"classifier ({labels} labels, the config names {num_labels})"])
    if kind_of_model(architecture) is Choice and labels != 1 and "classifier" in present:
        problems.add("of another shape", [f"classifier ({labels} outputs, a choice has 1)"])
    drawn: list[Entry] = []
    flat: dict[str, np.ndarray] = {}
    for entry in names.of(wanted):
        theirs = entry.names(side=side, num_layers=model.num_hidden_layers)
        missing = [name for name in theirs if name not in found]
        if missing:
            if matches(entry.flax, init_missing) or any(matches(name, init_missing) for name in missing):
                drawn.append(entry)
            else:
                problems.add("missing", missing, init_missing=entry.part)
            continue
        shape = entry.shape(model, num_labels=labels, stacked=False)
        shape = shape[::-1] if entry.transposed(side=side) else shape
        arrays = [found[name] for name in theirs]
        problems.add_shapes(theirs, arrays, shape)
        if not problems:
            whole = entry.shape(model, num_labels=labels)
            flat[entry.flax] = from_external(entry, arrays, side=side, shape=whole)
            if not np.isfinite(flat[entry.flax]).all():
                problems.add("not finite (damaged)", theirs)
    problems.raise_if_any()
    for entry in drawn:  # only now: a config that lies about its sizes is told by the tensors that are there
        flat[entry.flax] = draw(entry, model=model, num_labels=labels or 2)
    exact = name_architecture(wanted, model=model, declared=architecture, where=where)
    return Assembled(params=nest(flat), architecture=exact, dtype=_width(found))


def _width(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the one width of all tensors, or float32, which holds the values of every width."""
    dtypes = {array.dtype for array in tensors.values()}
    return next((name for name, kind in WEIGHT_DTYPES.items() if dtypes == {kind}), "float32")


def name_architecture(parts: Sequence[str], *, model: ModelConfig, declared: str, where: Path) -> str:
    """Return the HuggingFace class that has exactly `parts`, `declared` if it does.

    Raises:
      UserError: if there is none.
    """
    architecture = architecture_of(model)
    classes = architecture.huggingface.classes
    exact = [name for name, has in classes.items() if set(has) == set(parts)]
    if set(parts) == {"encoder"}:
        exact = [architecture.huggingface.bare_class]
    if declared in exact:
        return declared
    if exact and _may_be_another(declared, architecture):
        # Encoder, pooler and classifier are those of two classes: unless it says otherwise it classifies sequences.
        return exact[0]
    expected = classes.get(declared, ("encoder",))
    extra = sorted(set(parts) - set(expected))
    raise UserError(
        f"{where}: no {architecture.title} class holds exactly these parts: {', '.join(parts)}; leave some out with "
        f"--drop={','.join(extra)} "
        "or add what is missing with --init_missing=PART"
    )


def _may_be_another(declared: str, architecture: Architecture) -> bool:
    """Return whether a class may turn out to be another: MaskedLM with the parts of pre-training is that.

    A fine-tuned one is never taken for what it does not say it is.
    """
    return not declared or not _TASK_LAYERS & set(architecture.huggingface.classes.get(declared, _TASK_LAYERS))


def draw(entry: Entry, *, model: ModelConfig, num_labels: int) -> np.ndarray:
    """Return a fresh parameter: ones for a scale, zeros for a bias, else the original's truncated normal.

    The draw depends on the parameter's name alone.
    """
    shape = entry.shape(model, num_labels=num_labels)
    leaf = entry.flax.rpartition("/")[2]
    if leaf in ("scale", "bias"):
        return np.full(shape, leaf == "scale", np.float32)
    generator = np.random.default_rng(zlib.crc32(entry.flax.encode()))
    values = generator.standard_normal(shape, np.float32)
    while (far := np.abs(values) > 2).any():
        values[far] = generator.standard_normal(int(far.sum()), np.float32)
    return values * np.float32(model.initializer_range)


def _known_names(tensors: Mapping[str, np.ndarray], *, side: str, model: ModelConfig, where: Path) -> dict[str, Entry]:
    if model.num_hidden_layers > len(tensors):
        raise UserError(
            f"{where}: the config says num_hidden_layers={model.num_hidden_layers} but there are only {len(tensors)} "
            f"tensors: "
            "restore the config, or copy the weights again"
        )
    return {
        name: entry
        for entry in architecture_of(model).names.entries
        for name in entry.names(side=side, num_layers=model.num_hidden_layers)
    }


def _wanted_parts(
    present: set[str], *, model: ModelConfig, declared: str, init_missing: Sequence[str], drop: Sequence[str]
) -> tuple[str, ...]:
    architecture = architecture_of(model)
    every, huggingface = architecture.names.parts, architecture.huggingface
    # The bare class is saved with and without its other parts.
    bare = declared == huggingface.bare_class
    expected = {"encoder"} if bare else set(huggingface.classes.get(declared, ("encoder",)))
    asked = {part for part in every if part in init_missing}
    return tuple(part for part in every if part in present | (expected - set(drop)) | asked)


def _count_labels(found: Mapping[str, np.ndarray], *, classifier: Sequence[Entry], side: str, default: int) -> int:
    for entry in classifier:
        array = found.get(getattr(entry, side))
        if array is not None and array.ndim:
            return array.shape[0]
    return default


class _Problems:
    """Gather what is wrong, to say it all in one line."""

    def __init__(self, where: Path):
        self._where = where
        self._names: dict[str, list[str]] = {}
        self._advice: dict[str, dict[str, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, kind: str, found: Sequence[str], **advice: str) -> None:
        if found:
            self._names.setdefault(kind, []).extend(found)
            for flag, value in advice.items():
                self._advice.setdefault(flag, {})[value] = None

    def add_shapes(self, theirs: Sequence[str], arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> None:
        for name, array in zip(theirs, arrays, strict=True):
            if array.dtype not in WEIGHT_DTYPES.values():
                self.add("of another type", [f"{name} ({array.dtype}, not {', '.join(WEIGHT_DTYPES)})"])
            elif array.shape != shape:
                self.add("of another shape", [f"{name} ({array.shape}, the config says {shape})"])

    def raise_if_any(self) -> None:
        if not self._names:
            return
        told = []
        for kind, found in self._names.items():
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            told.append(f"{len(found)} {kind}: {', '.join(name[:120] for name in found[:_SHOWN])}{more}")
        advice = " ".join(f"--{flag}={','.join(values)}" for flag, values in self._advice.items())
        way_out = (
            f"; to go on all the same type {advice}" if advice else "; restore the config, or copy the files again"
        )
        raise UserError(f"{self._where}: {'; '.join(told)}{way_out}")
