"""Models in buckets: downloaded to this machine's cache, where they are found again as long as they stay the same."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from bert_jax.buckets import BucketFolder, Object, cache_folder
from bert_jax.convert.folder_advice import FORMATS
from bert_jax.convert.pretrained import CHECKPOINTS
from bert_jax.errors import UserError
from bert_jax.jax_internals import complete_steps
from bert_jax.locations import refuse_url

_LOG = "metrics.jsonl"  # for the model card
_NOT_READ = (".h5", ".msgpack", ".onnx", ".tflite", ".pb")
_PICKLES = (".bin", ".pt", ".pth", ".pkl")


def downloaded_model(url: str, *, report: Callable[[str], None]) -> Path:
    """Return the local copy of the model at a URL: a workdir, a checkpoint, a HuggingFace folder or a TF1 prefix.

    Of a workdir, the newest complete checkpoint and the vocabulary are downloaded.

    Raises:
      UserError: if there is no such model, or it cannot be downloaded.
    """
    refuse_url(url, name="model", buckets=True)
    url = url.rstrip("/")
    match = re.fullmatch(rf"(.+)/{CHECKPOINTS}/(\d+)", url)
    bucket = BucketFolder(match[1] if match else url, name="model")
    objects, optional = bucket.objects(), dict[str, Object]()
    inside = Path()  # of the copy: what `url` names
    if steps := complete_steps(objects, is_copy=True):
        step = int(match[2]) if match else steps[-1]
        if step not in steps:
            raise UserError(f"{url}: not a complete checkpoint: give one of the steps {', '.join(map(str, steps))}")
        optional = {name: value for name, value in objects.items() if name == _LOG}
        objects = _of_workdir(objects, step=step)
        inside = Path(CHECKPOINTS, str(step)) if match else inside
    elif not any("/" not in name for name in objects):  # no file in the folder itself
        parent, _, name = bucket.url.rpartition("/")
        bucket = BucketFolder(parent, name="model")
        beside = {n: value for n, value in bucket.objects().items() if "/" not in n}
        if f"{name}.index" not in beside:
            raise UserError(f"{url}: contains no model: give {FORMATS}")
        objects, inside = {n: v for n, v in beside.items() if _is_of_tf1(n, prefix=name)}, Path(name)
    else:
        objects = _readable(objects)
    folder = cache_folder("models", bucket.url, *(f"{name} {o.size} {o.md5}" for name, o in objects.items()))
    bucket.download({**objects, **optional}, to=folder, report=report)
    return folder / inside


def _of_workdir(objects: Mapping[str, Object], *, step: int) -> dict[str, Object]:
    folders = ("vocab/", f"{CHECKPOINTS}/{step}/")
    return {name: value for name, value in objects.items() if name.startswith(folders)}


def _is_of_tf1(name: str, *, prefix: str) -> bool:
    return name.startswith(f"{prefix}.") or name in ("bert_config.json", "vocab.txt")


def _readable(objects: Mapping[str, Object]) -> dict[str, Object]:
    """Return the objects of a HuggingFace folder without weights of other libraries."""
    has_weights = any(name.endswith(".safetensors") for name in objects)
    left_out = (*_NOT_READ, *_PICKLES) if has_weights else _NOT_READ
    return {name: value for name, value in objects.items() if not name.endswith(left_out)}
