"""Check `versions`: what is installed, and what the machine is."""

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import bert_jax
from bert_jax.diagnosis.results import CheckResult, Context, ok
from bert_jax.progress import format_bytes

PACKAGES = (
    "bert_jax",
    "jax",
    "jaxlib",
    "libtpu",
    "jax-cuda13-plugin",
    "jax-cuda12-plugin",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "array-record",
    "numpy",
    "ml-dtypes",
)
_OPTIONAL = ("libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin")  # not named where they are missing
# Instruction sets that change the order or the width of sums, widest first.
_INSTRUCTION_SETS = ("amx_bf16", "avx512f", "avx2", "avx", "sse4_2", "sve", "asimd")


def check(context: Context) -> CheckResult:
    """Return versions and machine; on several hosts these must have the same versions.

    Raises:
      UserError: naming the host whose versions differ.
    """
    versions = package_versions()
    commit = git_commit()
    context.hosts.check_same("versions", {**versions, "python": platform.python_version(), "commit": commit})
    packages = [f"{name} {version}" for name, version in versions.items() if name != "bert_jax"]
    memory, disk = memory_bytes(), shutil.disk_usage(context.workdir)
    package = f"bert_jax {versions['bert_jax']}, {f'commit {commit}' if commit else 'no git checkout'}"
    return ok(
        f"{package}, jax {versions['jax']}, Python {platform.python_version()}",
        [
            package,
            f"Python {platform.python_version()}, {', '.join(packages)}",
            f"{platform.platform()}, {os_name()}",
            f"CPU: {cpu_model()}, {os.cpu_count()} threads, {instruction_set()}",
            f"memory: {format_bytes(memory) if memory else 'unknown'}; workdir {context.workdir}: "
            f"{format_bytes(disk.free)} of {format_bytes(disk.total)} free",
            *(f"{name}={os.environ[name]}" for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") if os.environ.get(name)),
        ],
    )


def package_versions() -> dict[str, str]:
    """Return the version of each of `PACKAGES`."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name not in _OPTIONAL:
                versions[name] = "not installed"
    return versions


def git_commit() -> str:
    """Return the commit of the checkout that the package runs from, with a mark for changed files; "" without one."""
    root = Path(bert_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        return subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+changes", "--abbrev=9", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def os_name() -> str:
    """Return the distribution's name."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def cpu_model() -> str:
    """Return the processor's name."""
    return (
        _first(r"^(?:model name|Hardware|CPU part)\s*:\s*(.+)$", "/proc/cpuinfo") or platform.processor() or "unknown"
    )


def instruction_set() -> str:
    """Return the processor's widest vector instructions, and the kind of machine."""
    flags = _first(r"^(?:flags|Features)\s*:\s*(.+)$", "/proc/cpuinfo").split()
    widest = next((name for name in _INSTRUCTION_SETS if name in flags), "no vector instructions known")
    return f"{platform.machine()}, {widest}"


def memory_bytes() -> int | None:
    """Return the machine's memory."""
    text = _first(r"^MemTotal:\s*(\d+) kB", "/proc/meminfo")
    return int(text) * 1024 if text else None


def _first(pattern: str, file: str) -> str:
    try:
        match = re.search(pattern, Path(file).read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE)
    except OSError:
        return ""
    return match[1].strip() if match else ""
