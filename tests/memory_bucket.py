"""The buckets of gs:// in the memory of this process, in place of Google's."""

import sys
from typing import ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem


class MemoryBuckets(MemoryFileSystem):
    """Objects in memory, by gs:// URLs."""

    protocol = "gs"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("gs://", "memory://", 1))


@pytest.fixture
def memory_bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryBuckets:
    """Return the file system of empty buckets, which gs:// URLs lead to."""
    registered = sys.modules[
        "fsspec.registry"
    ]._registry  # the package has a name of its own for it, which is read-only
    monkeypatch.setitem(registered, "gs", MemoryBuckets)
    monkeypatch.setattr(MemoryBuckets, "store", {})
    monkeypatch.setattr(MemoryBuckets, "pseudo_dirs", [""])
    return MemoryBuckets(skip_instance_cache=True)
