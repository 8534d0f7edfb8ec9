"""What units cost: FLOPs divided by a speed, which is measured, planned for a TPU slice, or what the scale states."""

import dataclasses
from collections.abc import Callable, Iterable

from bert_jax.errors import UserError
from bert_jax.planning.report import plan_run
from bert_jax.planning.topology import Topology
from bert_jax.reproduction.pretraining import PretrainingWork
from bert_jax.reproduction.store import Store
from bert_jax.reproduction.work import Work


@dataclasses.dataclass(frozen=True)
class Cost:
    """The seconds that a unit still takes (None: unknown), and where the number is from."""

    seconds: float | None
    source: str


class Costs:
    """The costs of units. `stated` is the speed of the scale in FLOPs per second, 0 if it states none."""

    def __init__(self, store: Store, *, stated: float):
        self._store, self._stated = store, stated
        self._planned: dict[str, float] = {}
        self._planned_speed = 0.0
        self._topology = ""

    def plan(self, units: Iterable[Work], *, topology: Topology, report: Callable[[str], None]) -> None:
        """Plan the pre-training runs for a TPU slice; fine-tuning is assumed to run at their mean speed."""
        self._topology = topology.name
        speeds = []
        for unit in units:
            if not isinstance(unit, PretrainingWork):
                continue
            report(f"{unit.title}: planning for {topology.name}")
            try:
                plan = plan_run(unit.config, topology=topology, report=report)
            except UserError as error:
                report(f"{unit.title}: {error}")
                continue
            if not plan["fits"]:
                report(f"{unit.title}: {plan['advice']}")
                continue
            self._planned[unit.digest] = plan["days"] * 86400
            speeds.append(unit.flops() / self._planned[unit.digest])
        self._planned_speed = sum(speeds) / len(speeds) if speeds else 0.0

    def remaining(self, unit: Work) -> Cost:
        """Return what a unit still costs."""
        left = 1 - unit.done_fraction(self._store.folder(unit))
        if unit.digest in self._planned:
            return Cost(left * self._planned[unit.digest], f"planned for {self._topology}")
        if not unit.flops():
            return Cost(None, "not estimated")
        speed, source = self._speed(unit)
        return Cost(left * unit.flops() / speed if speed else None, source)

    def _speed(self, unit: Work) -> tuple[float, str]:
        measured = self._store.measured()
        own, related = (
            measured.get(unit.group, []),
            [pair for group, pairs in measured.items() if group.startswith(unit.kind) for pair in pairs],
        )
        if pairs := own or related:
            return sum(flops for flops, _ in pairs) / sum(seconds for _, seconds in pairs), "measured"
        if self._planned_speed:
            return self._planned_speed, f"planned for {self._topology}"
        return self._stated, "stated by the scale" if self._stated else "unknown until a run is measured"
