"""Builders of TFDS data sets by name or directory; one that is named and not there yet is downloaded and prepared."""

import shutil
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_jax.errors import UserError
from bert_jax.progress import format_bytes

_HOST = "storage.googleapis.com"  # where TFDS hosts data sets
OWN_TEXT = "--config.data.input='texts/*.txt' takes text of your own"


class NotPrepared(UserError):
    """A data set that would have to be downloaded or generated first."""


def open_builder(path: str) -> Any:
    """Return the builder of a data set: a directory with dataset_info.json, or a registered name.

    Raises:
        UserError: if there is none.
    """
    import tensorflow_datasets as tfds  # imported late: slow, and needed only for such inputs
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    directory = Path(path).expanduser()
    try:
        if "://" in path or directory.is_dir():
            return tfds.builder_from_directory(path if "://" in path else str(directory))
        try:
            return tfds.builder(path)
        except DatasetNotFoundError:
            import tensorflow_datasets.text

            return tfds.builder(path)
    except Exception as error:  # the data set's code may raise anything; the message gives the reason
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"data.input: no TFDS data set '{path}' ({reason}): type tfds:DIRECTORY with the folder of its "
            "dataset_info.json, or set TFDS_DATA_DIR to the folder that contains data sets by name"
        ) from error


def _has_network() -> bool:
    """Return whether names can be resolved, or a proxy does that."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(_HOST, 443)
    except OSError:
        return False
    return True


def require_prepared(builder: Any, *, path: str) -> None:
    """Check that a data set is there.

    Raises:
        NotPrepared: if it is not.
    """
    if not builder.info.splits:
        raise NotPrepared(f"data.input: TFDS data set '{path}' is not in {builder.data_dir} yet: a build downloads it")


def prepare(builder: Any, *, path: str, report: Callable[[str], None]) -> None:
    """Download and prepare a data set into TFDS's folder, unless it is there; report its size first.

    A data set that TFDS hosts is downloaded as it is, in TFRecord files; any other is generated.

    Raises:
        UserError: without a network, a full disk, or where its code fails; names the way to give text of one's own.
    """
    if builder.info.splits:
        return
    from tensorflow_datasets.core.utils import gcs_utils

    hosted = gcs_utils.is_dataset_on_gcs(builder.info.full_name)
    size = int(builder.info.dataset_size or 0)
    amount = (
        f"{format_bytes(size)}, which takes about {max(1, size // 3_000_000_000)} minutes at 50 MB/s" if size else ""
    )
    report(
        f"tfds:{builder.info.full_name} is not in {builder.data_dir} yet: "
        + (f"downloading it ({amount or 'size unknown'})" if hosted else "generating it, which may take hours")
        + f"; {OWN_TEXT}"
    )
    folder = next(parent for parent in [Path(builder.data_dir), *Path(builder.data_dir).parents] if parent.exists())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"data.input: TFDS data set '{path}' needs {format_bytes(size)}, the disk of {folder} has "
            f"{format_bytes(free)} free: set TFDS_DATA_DIR to a folder on a larger one"
        )
    if type(builder).__module__.startswith("tensorflow_datasets.") and not _has_network():
        raise UserError(  # TFDS would retry for minutes
            f"data.input: TFDS data set '{path}' is not here and there is no network: set TFDS_DATA_DIR to the folder "
            f"of one that is prepared, or give text: {OWN_TEXT}"
        )
    try:
        builder.download_and_prepare(file_format="tfrecord" if hosted else "array_record")
    except Exception as error:  # the data set's code may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"data.input: TFDS data set '{path}' cannot be prepared ({type(error).__name__}: {reason}): try again, "
            f"set TFDS_DATA_DIR to the folder of one that is prepared, or give text: {OWN_TEXT}"
        ) from error
