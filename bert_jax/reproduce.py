"""Run the experiments of the paper at a scale, and print its values next to ours.

    python -m bert_jax.reproduce --table=5 --scale=tiny --data_dir=DIR --workdir=DIR

Tables 1 to 8 and figure5. The same command resumes; what two tables share is run once. `--dry_run` lists the runs, what
is done, what the rest costs, and what is missing. Written: WORKDIR/table_5.json, table_5.txt, tables.html.
"""

import sys
from pathlib import Path

from bert_jax import cli  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip

TABLE = flags.DEFINE_string("table", "", "Tables to run, as in 5 or 5,6,figure5, or all.")
SCALE = flags.DEFINE_string(
    "scale", "", "Scale: paper, small or tiny (configs/reproduce_NAME.py), or a file like those."
)
WORKDIR = flags.DEFINE_string("workdir", "", "Directory for runs and results; default: runs/reproduce_SCALE.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder with text and tasks, as the scale names them.")
SEEDS = flags.DEFINE_integer("seeds", 0, "Fine-tuning runs per cell; 0: as the scale says.", lower_bound=0)
ANY_CODE = flags.DEFINE_bool(
    "any_code", False, "Also count runs that another version of the code made; the tables name them."
)
PAGE = flags.DEFINE_bool("page", True, "Write WORKDIR/tables.html (extra report).")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "List runs, costs, what is done and what is missing, then exit.")
TOPOLOGY = flags.DEFINE_string(
    "topology", "", "--dry_run: TPU slice to plan the pre-training runs for, as in v5e:4x4 (extra plan)."
)
HOST_TIMEOUT = flags.DEFINE_float("host_timeout", 600.0, "Seconds that the hosts of a pod wait for each other.")


def main() -> int:
    """Read the flags, join the other hosts, and run the tables."""
    from bert_jax.config.reproduction import load_scale, scales
    from bert_jax.errors import UserError
    from bert_jax.parallel import distributed
    from bert_jax.reproduction import command, plots
    from bert_jax.reproduction.resolve import Request

    if not TABLE.value:
        raise UserError("--table is missing: type for example --table=5, or --table=all")
    tables = command.tables_named(TABLE.value)
    if not SCALE.value:
        raise UserError(f"--scale is missing: choose one of {', '.join(scales())}")
    title, scale = load_scale(SCALE.value)
    request = Request(scale, title, Path(DATA_DIR.value).absolute(), SEEDS.value or scale.seeds)
    workdir = Path(WORKDIR.value or f"runs/reproduce_{title}")
    if DRY_RUN.value:
        return _dry_run(tables, request=request, workdir=workdir)
    if TOPOLOGY.value:
        raise UserError("--topology is for --dry_run: type both, or leave it out")
    if PAGE.value:
        plots.require_plots()
    typed = " ".join(["python -m bert_jax.reproduce", *sys.argv[1:]])

    def on_host(hosts: distributed.Hosts) -> int:
        options = command.Options(workdir, hosts=hosts, any_code=ANY_CODE.value, has_page=PAGE.value, command=typed)
        return command.reproduce(tables, request=request, options=options)

    return distributed.run_on_hosts(on_host, seconds=HOST_TIMEOUT.value)


def _dry_run(tables: list, *, request: object, workdir: Path) -> int:
    from bert_jax.planning import compiling
    from bert_jax.planning.topology import parse_topology
    from bert_jax.reproduction.cost import Costs
    from bert_jax.reproduction.dry_run import describe_table
    from bert_jax.reproduction.resolve import Request, Resolver, in_order
    from bert_jax.reproduction.store import Store

    assert isinstance(request, Request)
    topology = parse_topology(TOPOLOGY.value) if TOPOLOGY.value else None
    if topology is not None:
        compiling.prepare_environment()
    store = Store(workdir, any_code=ANY_CODE.value)
    costs = Costs(store, stated=request.scale.flops_per_second)
    resolver = Resolver(request)
    for table in tables:
        cells = resolver.cells(table)
        if topology is not None:
            costs.plan(in_order(cells), topology=topology, report=lambda line: print(line, file=sys.stderr))
        for line in describe_table(table, cells=cells, store=store, costs=costs):
            print(line)
    return 0


if __name__ == "__main__":
    cli.run(main)
