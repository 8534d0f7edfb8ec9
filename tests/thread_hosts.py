"""Stand several hosts up as threads of one process, with a store in memory for their messages."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from bert_jax import jax_internals
from bert_jax.errors import UserError
from bert_jax.parallel.distributed import Hosts


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Return what each call returned or raised, all of them running at once."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(outcome, calls))


class Store:
    """Stand for the key-value store of jax.distributed."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.failing: dict[str, Iterator[bool]] = {}  # by the thread's name, whether its next call fails
        self._lock = threading.Lock()

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        with self._lock:
            self._fail()
            if key in self.values and not allow_overwrite:
                raise RuntimeError(f"ALREADY_EXISTS: {key}")
            self.values[key] = value

    def _fail(self) -> None:
        if threading.current_thread().name in self.failing and next(self.failing[threading.current_thread().name]):
            raise RuntimeError("UNAVAILABLE: failed to connect")

    def key_value_dir_get(self, directory: str) -> list[tuple[str, str]]:
        with self._lock:
            self._fail()
            return [(key, value) for key, value in self.values.items() if key.startswith(directory)]


def hosts_in_threads(
    monkeypatch: pytest.MonkeyPatch, *names: str, seconds: float, store: Store | None = None
) -> list[Hosts]:
    """Return hosts with these names and this time limit, who speak through `store`."""
    shared = store or Store()
    monkeypatch.setattr(jax_internals, "key_value_client", lambda: shared)
    return [Hosts(index=index, names=names, seconds=seconds) for index in range(len(names))]
