"""Keep compiled programs in the workdir, so that a restart reaches its first step without the compiler."""

from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from bert_jax import jax_internals

DIRECTORY = "compilation_cache"  # in the workdir; may be deleted at any time


class CompilationCache:
    """Compiled programs in WORKDIR/compilation_cache, and a count of what was found there.

    Where the user has chosen a cache (JAX_COMPILATION_CACHE_DIR, or `jax_compilation_cache_dir`), that one serves.
    """

    def __init__(self, workdir: str | Path):
        """Begin to use the cache for all that is compiled from now on. Of several hosts the first one writes."""
        self.hits = self.requests = 0
        jax.monitoring.register_event_listener(self._count)
        jax_internals.quiet("compilation cache")
        self._is_ours = not jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        if self._is_ours:
            jax.config.update("jax_compilation_cache_dir", str(Path(workdir) / DIRECTORY))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # a start has a dozen small programs
            compilation_cache.reset_cache()  # what was compiled before has settled that there is no cache
        if jax.process_count() > 1 and jax.default_backend() == "cpu":
            jax_internals.share_programs_between_cpu_hosts()

    def close(self) -> None:
        """Compile without the workdir's cache again: another run of this process has another workdir."""
        if self._is_ours:
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()

    def _count(self, event: str, **_: object) -> None:
        self.hits += event == "/jax/compilation_cache/cache_hits"
        self.requests += event == "/jax/compilation_cache/compile_requests_use_cache"
