"""Keep compiled programs in the workdir, so that a restart reaches its first step without the compiler."""

import functools
import logging
from pathlib import Path

import jax
from jax._src import cache_key
from jax.experimental.compilation_cache import compilation_cache

DIRECTORY = "compilation_cache"  # in the workdir; may be deleted at any time


class CompilationCache:
    """Compiled programs in WORKDIR/compilation_cache, and a count of what was found there.

    Where the user has chosen a cache (JAX_COMPILATION_CACHE_DIR, or `jax_compilation_cache_dir`), that one serves.
    """

    def __init__(self, workdir: str | Path):
        """Begin to use the cache for all that is compiled from now on. Of several hosts the first one writes."""
        self.hits = self.requests = 0
        jax.monitoring.register_event_listener(self._count)
        self._is_ours = not jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        if self._is_ours:
            jax.config.update("jax_compilation_cache_dir", str(Path(workdir) / DIRECTORY))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # a start has a dozen small programs
            compilation_cache.reset_cache()  # what was compiled before has settled that there is no cache
        logging.getLogger("jax._src.compilation_cache").setLevel(logging.WARNING)
        if jax.process_count() > 1 and jax.default_backend() == "cpu":
            _one_key_for_all_hosts()

    def close(self) -> None:
        """Compile without the workdir's cache again: another run of this process has another workdir."""
        if self._is_ours:
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()

    def _count(self, event: str, **_: object) -> None:
        self.hits += event == "/jax/compilation_cache/cache_hits"
        self.requests += event == "/jax/compilation_cache/compile_requests_use_cache"


@functools.cache
def _one_key_for_all_hosts() -> None:
    """Let the CPU hosts of a run find the programs that the first one wrote.

    A CPU's topology, which is part of the key, says which devices are local. The program is the same; TPUs have one
    topology for all hosts.
    """
    if hasattr(cache_key, "_hash_accelerator_config") and hasattr(cache_key, "_hash_devices"):
        cache_key._hash_accelerator_config = cache_key._hash_devices
