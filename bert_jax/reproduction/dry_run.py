"""The output of `reproduce --dry_run`: the runs of a table, what is done, what the rest costs, what is missing."""

from collections.abc import Iterator, Sequence

from bert_jax.progress import duration
from bert_jax.reproduction.cost import Costs
from bert_jax.reproduction.experiments import Table
from bert_jax.reproduction.resolve import NOT_RUN, Cell, in_order
from bert_jax.reproduction.store import Store
from bert_jax.reproduction.text import shown_places


def describe_table(table: Table, *, cells: Sequence[Cell], store: Store, costs: Costs) -> Iterator[str]:
    """Yield the lines about a table. Nothing is written."""
    units = in_order(cells)
    yield f"{table.heading}, {table.title}: {len(units)} runs"
    total, is_whole = 0.0, True
    for unit in units:
        folder = store.folder(unit)
        if store.result(unit) is not None:
            yield f"  {folder.name}  done          {unit.title}"
            continue
        cost = costs.remaining(unit)
        fraction = unit.done_fraction(folder)
        state = (
            f"failed: {reason}" if (reason := store.failure(unit)) else f"{fraction:.0%} done" if fraction else "open"
        )
        total += cost.seconds or 0.0
        is_whole = is_whole and (cost.seconds is not None or not unit.flops())
        time = "" if cost.seconds is None else f"about {duration(cost.seconds)}, "
        yield f"  {folder.name}  {state:<12}  {unit.title} ({time}{cost.source})"
    missing: dict[str, list[tuple[str, str]]] = {}
    for cell in cells:
        if cell.unit is None and cell.missing != NOT_RUN:
            missing.setdefault(cell.missing, []).append((cell.row.title, cell.column.key))
    for reason, places in missing.items():
        yield f"  missing: {shown_places(places)}: {reason}"
    yield f"  time left: {'about' if is_whole else 'at least'} {duration(total)}"
