"""Run commands in processes that are forked from one which has imported what commands import.

A command is tested as a process of its own, with its own arguments, environment, streams and exit status. Starting
Python and importing jax, flax and Orbax takes 2.4 seconds of a core. Most commands of the tests take less for their
work, and the tests start some two hundred. The server imports everything once per test worker and initializes
nothing, so a fork behaves as a new interpreter does. `test_main.py` starts every command for real.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# Their imports set variables (jax where libtpu is installed), whichever test imports them first.
import jax  # noqa: F401

import bert_jax.cli  # noqa: F401

PRELOAD = [
    "grain",
    "jax",
    "optax",
    "orbax.checkpoint",
    "bert_jax.cli",
    "bert_jax.convert.export_folder",
    "bert_jax.finetuning.finetune",
    "bert_jax.prediction.model",
    "bert_jax.pretrain.evaluate_pretrained",
    "bert_jax.pretrain.run",
]
STREAMS = ("in", "out", "err")


def _read_at_import(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that take effect only when a library is imported, which the server has done already."""
    return {name: value for name, value in env.items() if name.startswith(("JAX_", "TF_", "TPU_"))}


_AT_START = _read_at_import(os.environ)  # conftest.py has set the environment when this module is imported


def run(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` in a fork and return its status and output.

    Raises:
        subprocess.TimeoutExpired: the command ran for longer than `timeout` seconds, and was killed.
    """
    assert list(command[:2]) == [sys.executable, "-m"]
    assert _read_at_import(env) == _AT_START
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in STREAMS]
        paths[0].write_text(text)
        process = context.Process(
            target=_main, args=(list(command[2:]), str(cwd), dict(env), [str(path) for path in paths])
        )
        process.start()
        process.join(timeout)
        if process.is_alive():
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)  # and the processes that it has started
            process.join()
            raise subprocess.TimeoutExpired(list(command), timeout, *(path.read_bytes() for path in paths[1:]))
        assert process.exitcode is not None
        output, errors = (path.read_text() if path.exists() else "" for path in paths[1:])
        return subprocess.CompletedProcess(list(command), process.exitcode, output, errors)


def _main(argv: list[str], cwd: str, env: dict[str, str], streams: list[str]) -> None:
    """Become the command: streams, folder, environment, arguments; then run the module as `python -m` does."""
    os.setsid()
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for number, (path, flag) in enumerate(zip(streams, flags, strict=True)):
        opened = os.open(path, flag)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[0] = cwd
    sys.argv = argv
    try:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a forked process ends without them, and Orbax and jax.distributed close there
