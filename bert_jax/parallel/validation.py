"""Checks, before anything is compiled, that batches and layers divide over a mesh; callers name the fields."""

from collections.abc import Mapping

from jax.sharding import AbstractMesh, Mesh

from bert_jax.errors import UserError
from bert_jax.parallel.axes import BATCH_AXES, BY_NAME_AXES, LAYER_AXES, axes_in_messages, size_along

_MAX_BATCH = 1 << 24  # sequences; the largest of the literature, LAMB's, is 65,536


def check_batches(batches: Mapping[str, int], *, mesh: Mesh | AbstractMesh, parts: int) -> None:
    """Check that batches divide over the mesh in `parts` micro-batches; `batches` maps fields to batch sizes.

    Raises:
      UserError: naming the field and the next valid value.
    """
    rows = size_along(mesh.shape, axes=BATCH_AXES)
    over = f"{rows} devices (mesh {' x '.join(name for name in axes_in_messages(mesh.shape) if name in BATCH_AXES)})"
    if parts > 1:
        over += f" times {parts} gradient_accumulation_steps"
    for field, batch in batches.items():
        if batch > _MAX_BATCH:
            raise UserError(f"{field}={batch} is more than any machine holds: make it at most {_MAX_BATCH}")
        if batch % (rows * parts):
            raise UserError(
                f"{field}={batch} does not divide over {over}: make it a multiple of {rows * parts}, for example "
                f"{-(-batch // (rows * parts)) * rows * parts}"
            )


def check_layers(sizes: Mapping[str, int], *, mesh: Mesh | AbstractMesh) -> None:
    """Check that the sharded dimensions of a layer divide over the mesh; `sizes` maps fields to dimensions.

    Raises:
      UserError: naming the field and the axis.
    """
    count = size_along(mesh.shape, axes=LAYER_AXES)
    for field, size in sizes.items():
        if size % count:
            raise UserError(
                f"config.mesh.{' x '.join(LAYER_AXES)}={count} does not divide {field}={size}: change one of them"
            )


def check_clip_replicas(replicas: int, *, batches: Mapping[str, int], mesh: Mesh | AbstractMesh, parts: int) -> None:
    """Check that gradients can be clipped in `replicas` parts; `batches` and `parts` are those of `check_batches`.

    Raises:
      UserError: naming the field and a valid value.
    """
    if replicas == 1:
        return
    field = f"config.optimizer.clip_replicas={replicas}"
    if size_along(mesh.shape, axes=BY_NAME_AXES) != 1:
        whole = " and ".join(name for name in axes_in_messages(mesh.shape) if name not in BY_NAME_AXES)
        raise UserError(
            f"{field} needs a mesh with no axes but {whole}: set config.mesh.{' and '.join(BY_NAME_AXES)} to 1"
        )
    if replicas % mesh.size:
        raise UserError(
            f"{field} does not divide over {mesh.size} devices: make it a multiple, for example "
            f"{-(-replicas // mesh.size) * mesh.size}, or 1 to clip the whole batch's gradient"
        )
    for name, batch in batches.items():
        if batch % replicas:
            raise UserError(f"{field} does not divide {name}={batch}: change one of them")
    if parts not in (1, replicas // mesh.size):
        raise UserError(
            f"config.train.gradient_accumulation_steps={parts}: with {field} every device already has "
            f"{replicas // mesh.size} micro-batches, one per replica: set it to 1"
        )
