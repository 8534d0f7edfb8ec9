import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bert_jax.data.workers import run_beam, run_local
from bert_jax.errors import UserError

HEAVY = {"jax", "tensorflow", "flax", "torch", "grain", "tensorflow_datasets"}


def die(item, *, advance):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    advance(1)


def fail(item, *, advance):
    raise {0: UserError("fix it"), 1: OSError(errno.ENOSPC, "full"), 2: ZeroDivisionError("bug")}[item % 3]


def write_heavy_modules(item, *, advance):
    """Write to the file `item` what a worker that built a shard has imported and should not have."""
    from bert_jax.data import intermediate, shards  # noqa: F401

    Path(item).write_text(" ".join(sorted(HEAVY & set(sys.modules))))


def touch(item, *, advance):
    advance(5)
    Path(item).write_text("done")


def test_a_killed_worker_is_reported_and_the_others_stop():
    with pytest.raises(UserError, match=r"worker process was killed \(exit status -9\)"):
        run_local(die, list(range(8)), num_workers=2, advance=lambda _: None)


@pytest.mark.parametrize(("piece", "error"), [(0, UserError), (1, OSError), (2, RuntimeError)])
def test_failures_of_workers_reach_the_caller(piece, error):
    with pytest.raises(error, match=r"fix it|full|bug"):
        run_local(fail, [piece, piece + 3], num_workers=2, advance=lambda _: None)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_piece_is_done_and_progress_adds_up(tmp_path, num_workers):
    amounts: list[int] = []
    files = [str(tmp_path / str(number)) for number in range(7)]
    run_local(touch, files, num_workers=num_workers, advance=amounts.append)
    assert amounts == [5] * 7
    assert all(Path(file).read_text() == "done" for file in files)


def test_no_pieces_are_no_work():
    amounts: list[int] = []
    run_local(die, [], num_workers=2, advance=amounts.append)
    assert amounts == []


def test_workers_import_neither_the_main_module_nor_jax(tmp_path):
    script = tmp_path / "program.py"
    log = tmp_path / "log"
    files = [str(tmp_path / "0"), str(tmp_path / "1")]
    # There is no `if __name__ == "__main__"`: a notebook has none either.
    script.write_text(
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
        f"open({str(log)!r}, 'a').write(__name__ + ' ')\n"
        "import jax, test_workers\n"
        "from bert_jax.data.workers import run_local\n"
        f"run_local(test_workers.write_heavy_modules, {files!r}, num_workers=2, advance=print)\n"
    )
    subprocess.run([sys.executable, str(script)], check=True)
    assert log.read_text() == "__main__ "
    assert [Path(file).read_text() for file in files] == ["", ""]


def test_every_worker_is_born_with_interrupts_blocked(tmp_path):
    script = tmp_path / "program.py"
    # A new interpreter: the first process of all starts multiprocessing's resource tracker, which unblocks SIGINT.
    script.write_text(
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
        "import signal\n"
        "from multiprocessing import util\n"
        "import test_workers\n"
        "from bert_jax.data.workers import run_local\n"
        "spawn = util.spawnv_passfds\n"
        "def report_mask(path, arguments, fds):\n"
        "    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
        "    print('tracker' if 'resource_tracker' in str(arguments) else 'worker', blocked)\n"
        "    return spawn(path, arguments, fds)\n"
        "util.spawnv_passfds = report_mask\n"
        f"run_local(test_workers.touch, {[str(tmp_path / name) for name in '01']!r}, num_workers=2, advance=str)\n"
    )
    result = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    assert [line for line in result.stdout.splitlines() if line.startswith("worker")] == ["worker True"] * 2


def test_beam_that_is_not_installed_gets_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install 'bert_jax\[beam\]'"):
        run_beam(touch, ["x"], arguments=[])


@pytest.mark.filterwarnings("default")  # Beam's own
def test_beam_does_every_piece(tmp_path):
    pytest.importorskip("apache_beam", reason="needs the beam extra: pip install -e '.[beam]'")
    files = [str(tmp_path / str(number)) for number in range(3)]
    run_beam(touch, files, arguments=["--runner=DirectRunner", "--direct_num_workers=1"])
    assert all(Path(file).read_text() == "done" for file in files)
