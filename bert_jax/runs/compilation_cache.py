"""Cache compiled programs in the workdir, so a restart reaches its first step without compiling."""

from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from bert_jax import jax_internals

DIRECTORY = "compilation_cache"  # in the workdir; may be deleted at any time


class CompilationCache:
    """The cache of compiled programs in WORKDIR/compilation_cache, with counts of hits and requests.

    A cache chosen by the user (JAX_COMPILATION_CACHE_DIR, or `jax_compilation_cache_dir`) is used instead.
    """

    def __init__(self, workdir: str | Path):
        """Use the cache for all compilations from now on. Only the first host writes."""
        self.hits = self.requests = 0
        jax.monitoring.register_event_listener(self._count)
        jax_internals.quiet("compilation cache")
        self._is_in_workdir = not jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        if self._is_in_workdir:
            jax.config.update("jax_compilation_cache_dir", str(Path(workdir) / DIRECTORY))
            jax.config.update(
                "jax_persistent_cache_min_compile_time_secs", 0
            )  # a start compiles a dozen small programs
            compilation_cache.reset_cache()  # an earlier compilation may have recorded that there is no cache
        if jax.process_count() > 1 and jax.default_backend() == "cpu":
            jax_internals.share_programs_between_cpu_hosts()

    def close(self) -> None:
        """Stop using the workdir's cache: the next run in this process has another workdir."""
        if self._is_in_workdir:
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()

    def _count(self, event: str, **_: object) -> None:
        self.hits += event == "/jax/compilation_cache/cache_hits"
        self.requests += event == "/jax/compilation_cache/compile_requests_use_cache"
