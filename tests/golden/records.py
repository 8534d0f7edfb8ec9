"""Golden files: JSON with a fact per line, so that a diff shows which facts changed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.bounds import loss_bounds

FOLDER = Path(__file__).parent
LOSSES, PROGRAMS = FOLDER / "losses", FOLDER / "programs"
REGENERATE = "python -m tests.golden --write"


@dataclasses.dataclass(frozen=True)
class GoldenLosses:
    """The losses of one run: float32 [steps], how far rounding moves them, and a hash of what was trained on."""

    name: str
    batches: str
    losses: np.ndarray
    moves: np.ndarray

    @classmethod
    def from_json(cls, name: str, record: dict[str, Any]) -> "GoldenLosses":
        """Return what `to_json` wrote: numbers are float32's shortest decimals, which give its bits back."""
        losses, moves = zip(*record["losses and moves"], strict=True)
        return cls(name, record["batches"], np.array(losses, np.float32), np.array(moves, np.float64))

    @classmethod
    def from_measured(cls, item: dict[str, Any]) -> "GoldenLosses":
        """Return what `measuring.py` printed; without draws nothing moves."""
        moves = item.get("moves", [0.0] * len(item["losses"]))
        return cls(item["name"], item["batches"], np.array(item["losses"], np.float32), np.array(moves))

    def to_json(self) -> dict[str, Any]:
        """Return the record of the file: per step the loss, and how far it moves."""
        pairs = [[float(str(loss)), float(f"{move:.1e}")] for loss, move in zip(self.losses, self.moves, strict=True)]
        return {"batches": self.batches, "losses and moves": pairs}

    def difference(self, losses: np.ndarray, *, batches: str, exact: bool) -> str:
        """Return one line on the first step whose loss differs, by a bit or by more than the bound; "" for none."""
        file = f"tests/golden/losses/{self.name}.json"
        if batches != self.batches:
            return f"{self.name}: the batches are not those of {file}: data, packing or shuffling changed; {_remedy()}"
        if len(losses) != len(self.losses):
            return f"{self.name}: {len(losses)} losses, {len(self.losses)} in {file}; {_remedy()}"
        bounds = loss_bounds(self.losses, self.moves)
        apart = np.abs(losses.astype(np.float64) - self.losses)
        wrong = np.flatnonzero((losses != self.losses) if exact else ~(apart <= bounds))
        if not len(wrong):
            return ""
        step = wrong[0]
        limit = "0 (exact)" if exact else f"{bounds[step]:.2e}"
        return (
            f"{self.name}: the loss of step {step} of {len(losses)} is {losses[step]}, and {self.losses[step]} in "
            f"{file}: {apart[step]:.2e} apart, bound {limit}; {len(wrong)} steps differ, by up to "
            f"{np.nanmax(apart / bounds):.3g} times the bound of rounding; {_remedy()}"
        )


def _remedy(kind: str = "losses") -> str:
    return f"if that is meant: {REGENERATE} {kind}, and commit the diff"


def read_losses(name: str) -> GoldenLosses:
    """Return the golden losses of a run."""
    return GoldenLosses.from_json(name, read(LOSSES / f"{name}.json"))


def read(path: Path) -> Any:
    """Return a file's JSON, None where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def program_file(name: str) -> Path:
    """Return the file of a program, CONFIG@TOPOLOGY."""
    return PROGRAMS / f"{name.replace(':', '_')}.json"


def program_difference(name: str, *, golden: Any, current: Any) -> str:
    """Return one line that names the facts that differ, "" for none."""
    before, now = flat(golden), flat(current)
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if not changed:
        return ""
    shown = ", ".join(f"{key} {before.get(key, 'absent')} -> {now.get(key, 'absent')}" for key in changed[:6])
    file = f"tests/golden/programs/{program_file(name).name}"
    return f"{name}: {len(changed)} facts differ from {file}: {shown}; {_remedy('programs')}"


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested JSON by their path."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {path: value}
    return {k: v for key, inner in items for k, v in flat(inner, f"{path}/{key}" if path else str(key)).items()}


def to_text(value: Any, *, indent: int = 0, entry: bool = False) -> str:
    """Return JSON with a line per fact, or per list of plain values, or per mapping of them that is a list's `entry`.

    A diff then shows a changed loss with its move, a changed kind of collective with its count and bytes.
    """
    nested = isinstance(value, (dict, list)) and any(
        isinstance(item, (dict, list)) for item in (value.values() if isinstance(value, dict) else value)
    )
    if not nested and (entry or not isinstance(value, dict)):
        return json.dumps(value)
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {to_text(item, indent=indent + 1)}" for key, item in value.items()]
    else:
        lines = [to_text(item, indent=indent + 1, entry=True) for item in value]
    space = "\n" + "  " * (indent + 1)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}{space}{f',{space}'.join(lines)}{space[:-2]}{closing}" if lines else opening + closing
