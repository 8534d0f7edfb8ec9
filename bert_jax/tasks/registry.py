"""The table of tasks by name."""

from bert_jax.config.task_options import DataOptions, EmbedOptions, NerOptions, OwnOptions, RerankOptions, SquadOptions
from bert_jax.errors import UserError, choose_one
from bert_jax.tasks import glue
from bert_jax.tasks.embedding import EmbedTask
from bert_jax.tasks.interface import Task
from bert_jax.tasks.ner import NerTask
from bert_jax.tasks.own_data import OWN_TASKS
from bert_jax.tasks.reranking import RerankTask
from bert_jax.tasks.squad import FILES, SquadTask
from bert_jax.tasks.swag import SwagTask

TASKS = (*glue.TASKS, *FILES, "swag", "ner", "own", "embed", "rerank")


def open_task(
    name: str,
    *,
    data: DataOptions | None = None,
    squad: SquadOptions | None = None,
    ner: NerOptions | None = None,
    own: OwnOptions | None = None,
    embed: EmbedOptions | None = None,
    rerank: RerankOptions | None = None,
) -> Task:
    """Return the task called `name`. Missing options have their defaults.

    Raises:
      UserError: for an unknown name, an unknown kind of custom data, or a metric that the task does not have.
    """
    data = data or DataOptions()
    if name == "embed":
        task: Task = EmbedTask(data=data, embed=embed or EmbedOptions())
    elif name == "rerank":
        task = RerankTask(data=data, rerank=rerank or RerankOptions())
    else:
        task = _open(name, data=data, squad=squad, ner=ner, own=own)
    if data.selection:
        if data.selection not in (choices := task.selections or (task.selection,)):
            raise UserError(
                f"config.data.selection={data.selection!r}: {name} has no such metric: choose one of "
                f"{', '.join(choices)}"
            )
        task.selection = data.selection
    return task


def _open(
    name: str, *, data: DataOptions, squad: SquadOptions | None, ner: NerOptions | None, own: OwnOptions | None
) -> Task:
    if name in glue.TASKS:
        return glue.GlueTask(name, data=data)
    if name in FILES:
        return SquadTask(name, data=data, squad=squad or SquadOptions())
    if name == "swag":
        return SwagTask(data=data)
    if name == "ner":
        return NerTask(data=data, ner=ner or NerOptions())
    if name == "own":
        own = own or OwnOptions()
        if own.kind not in OWN_TASKS:
            raise UserError(f"config.own.kind={own.kind!r}: {choose_one(own.kind, OWN_TASKS)}")
        return OWN_TASKS[own.kind](data=data, own=own, squad=squad or SquadOptions())
    raise UserError(f"task {name!r}: {choose_one(name, TASKS)}")
