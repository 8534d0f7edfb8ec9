"""The check that a pre-training run divides over a mesh."""

from jax.sharding import AbstractMesh, Mesh

from bert_jax.config import Config, ModelConfig
from bert_jax.parallel import validation


def validate_for_mesh(config: Config, *, mesh: Mesh | AbstractMesh) -> None:
    """Check that batches, heads and inner layer divide over the mesh.

    Raises:
      UserError: naming the field and the next valid value.
    """
    train = config.train
    batches = {"config.train.batch_size": train.batch_size} | {
        f"config.train.phases[{index}].batch_size": phase.batch_size
        for index, phase in enumerate(train.phases)
        if phase.batch_size
    }
    parts = train.gradient_accumulation_steps
    validation.check_batches(batches, mesh=mesh, parts=parts)
    validation.check_clip_replicas(config.optimizer.clip_replicas, batches=batches, mesh=mesh, parts=parts)
    validation.check_layers(layer_sizes(config.model), mesh=mesh)


def layer_sizes(model: ModelConfig) -> dict[str, int]:
    """Return the sizes of the dimensions that are sharded within a layer, by config field."""
    return {f"config.model.{name}": getattr(model, name) for name in ("num_attention_heads", "intermediate_size")}
