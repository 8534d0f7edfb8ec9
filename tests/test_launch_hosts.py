"""What a launcher runs on every host: install, start up, train and start again, shut down."""

import os
import subprocess
import time

import pytest

from tests.launchers import FLAGS, LAUNCH, count, fake, launch


def host_run(tmp_path, statuses, **environment):
    """Run the loop against a Python that ends with one status after another; return the result and its state."""
    python = tmp_path / "python"
    (tmp_path / "statuses").write_text("\n".join(map(str, statuses)) + "\n")
    python.write_text(
        f'#!/bin/bash\ncd {tmp_path}; echo "$@" >> calls; read -r code < statuses; sed -i 1d statuses; exit "$code"\n'
    )
    python.chmod(0o755)
    given = {"BERT_JAX_PYTHON": str(python), "BERT_JAX_STATE": str(tmp_path / "state"), "RESTART_SECONDS": "0"}
    result = launch("host_run.sh", *FLAGS, environment={**given, **environment})
    calls = (tmp_path / "calls").read_text().splitlines()
    return result, calls, launch("host_run.sh", "--state", environment=given).stdout.strip()


def test_a_host_starts_again_after_preemption_and_kills(tmp_path):
    result, calls, state = host_run(tmp_path, [75, 137, 134, 0])
    assert (result.returncode, state) == (0, "ended 0")
    flags = " ".join(FLAGS[1:])
    assert calls == [f"-m bert_jax.train {flags}"] * 4


@pytest.mark.parametrize("status", [1, 2, 130])
def test_a_host_ends_with_what_a_restart_would_not_mend(tmp_path, status):
    result, calls, state = host_run(tmp_path, [75, status])
    assert (result.returncode, state, len(calls)) == (status, f"ended {status}", 2)


def test_a_host_gives_up_after_its_restarts(tmp_path):
    result, calls, state = host_run(tmp_path, [75] * 9, MAX_RESTARTS="3")
    assert (result.returncode, state, len(calls)) == (1, "ended 1", 4)
    assert "3 restarts are used up" in result.stdout


@pytest.fixture
def started():
    """Start processes that are ended with the test."""
    processes = []

    def start(*command, **keywords):
        processes.append(subprocess.Popen(command, text=True, **keywords))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(condition):
    """Wait until it holds, half a minute at most."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_sigterm_in_the_pause_before_a_restart_ends_the_host(tmp_path, started):
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(f'#!/bin/bash\necho started >> "{tmp_path}/calls"\nexit 137\n')
    python.chmod(0o755)
    given = {"BERT_JAX_PYTHON": str(python), "BERT_JAX_STATE": str(tmp_path / "state"), "RESTART_SECONDS": "600"}
    with log.open("w") as output:
        host = started(LAUNCH / "host_run.sh", *FLAGS, env={**os.environ, **given, "MAX_RESTARTS": "1"}, stdout=output)
    wait_for(lambda: "restarting" in log.read_text())
    host.terminate()
    assert host.wait(timeout=30) == 75
    assert (tmp_path / "calls").read_text() == "started\n"
    assert (tmp_path / "state").read_text() == "ended 75\n"


# Training that saves for a second after SIGTERM, and says so in between.
SLOW_TO_SAVE = """#!/bin/bash
cd "${0%/*}"
trap 'sleep 0.5; echo saving || exit 1; sleep 0.5; touch saved; exit 75' TERM
touch ready
while :; do sleep 0.05; done
"""


def test_a_machine_that_stops_lets_training_save_and_is_away(tmp_path, started):
    fake(tmp_path, ["hosts => 2", "flags => --workdir=/mnt/share/run", "attributes/bert-jax => x"], "curl")
    (tmp_path / "launch").mkdir()
    for name, text in {
        "python": SLOW_TO_SAVE,
        "launch/host_run.sh": f'#!/bin/bash\nexec "{LAUNCH}/host_run.sh" "$@"\n',
        "launch/host_install.sh": "#!/bin/bash\n",
        ".venv/bin/python": "#!/bin/bash\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    state = tmp_path / "state"
    state.write_text(f"running {os.getpid()}\n")  # of before a restart: another process has the number now
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "BERT_JAX_FOLDER": str(tmp_path),
        "BERT_JAX_MOUNT": str(tmp_path),
        "BERT_JAX_LOG": str(tmp_path / "log"),
        "BERT_JAX_STATE": str(state),
        "BERT_JAX_PYTHON": str(tmp_path / "python"),
    }
    reader, writer = os.pipe()
    machine = started(LAUNCH / "host_startup.sh", env=environment, stdout=writer, stderr=writer)
    os.close(writer)
    wait_for((tmp_path / "ready").exists)
    os.close(reader)  # the system ends what reads the output first
    stop = launch("host_shutdown.sh", environment=environment)
    assert stop.returncode == 0, stop.stderr
    assert (tmp_path / "saved").exists()
    machine.wait(timeout=30)
    assert state.read_text() == "ended 75\n"
    assert "saving" in (tmp_path / "log").read_text()
    assert "--data away" in (tmp_path / "calls").read_text().splitlines()[-1]


def test_a_machine_that_stops_does_not_wait_for_ever(tmp_path, started):
    deaf = started("bash", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done", stdout=subprocess.PIPE)
    assert deaf.stdout.readline() == "deaf\n"
    (tmp_path / "state").write_text(f"running {deaf.pid}\n")
    environment = {"BERT_JAX_STATE": str(tmp_path / "state"), "SHUTDOWN_SECONDS": "1"}
    stop = launch("host_shutdown.sh", environment=environment)
    assert (stop.returncode, stop.stdout.splitlines()[-1]) == (0, "training did not end within 1 s")


@pytest.mark.parametrize("text", [None, "ended 75\n", "running 4194304000\n"])
def test_a_machine_that_stops_has_nothing_to_wait_for_where_training_does_not_run(tmp_path, text):
    if text is not None:
        (tmp_path / "state").write_text(text)
    stop = launch("host_shutdown.sh", environment={"BERT_JAX_STATE": str(tmp_path / "state")})
    assert (stop.returncode, stop.stdout, stop.stderr) == (0, "", "")


# What makes a uv that does nothing.
UV = "mkdir -p ~/.local/bin; echo '#!/bin/sh' > ~/.local/bin/uv; chmod +x ~/.local/bin/uv"


@pytest.mark.parametrize("step", ["update", "install -y nfs-common", "astral.sh"])
def test_installing_tries_again(tmp_path, step):
    answers = ["-q /mnt/share => no => 1", *[f"{step} => locked => 100"] * 2, f"astral.sh => {UV}"]
    fake(tmp_path, answers, "sudo", "curl", "mountpoint")
    environment = {"HOME": str(tmp_path), "RETRY_SECONDS": "0"}
    result = launch("host_install.sh", "tpu", "10.0.0.2:/share", environment=environment, path=tmp_path)
    assert result.returncode == 0, result.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert count(calls, step) == 3
    assert count(calls, "-o DPkg::Lock::Timeout=600") == count(calls, "apt-get") >= 2


def test_installing_gives_up_in_the_end(tmp_path):
    fake(tmp_path, ["-q /mnt/share => no => 1", "*update => no network => 100"], "sudo", "mountpoint")
    environment = {"HOME": str(tmp_path), "RETRY_SECONDS": "0"}
    result = launch("host_install.sh", "tpu", "10.0.0.2:/share", environment=environment, path=tmp_path)
    assert result.returncode == 100
    assert count((tmp_path / "calls").read_text().splitlines(), "update") == 5


def test_a_host_that_was_restarted_says_gone(tmp_path):
    state = tmp_path / "state"
    environment = {"BERT_JAX_STATE": str(state)}
    assert launch("host_run.sh", "--state", environment=environment).stdout == "gone\n"
    state.write_text("running 4194304000\n")  # no such process
    assert launch("host_run.sh", "--state", environment=environment).stdout == "gone\n"


def test_sigterm_reaches_training_and_ends_the_host_with_75(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\ntrap "exit 75" TERM\ntouch "${0%/*}/ready"\nwhile :; do sleep 0.05; done\n')
    python.chmod(0o755)
    environment = {**os.environ, "BERT_JAX_PYTHON": str(python), "BERT_JAX_STATE": str(tmp_path / "state")}
    process = subprocess.Popen([LAUNCH / "host_run.sh", *FLAGS], env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if (tmp_path / "ready").exists():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
        process.terminate()
        assert process.wait(timeout=30) == 75
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "state").read_text() == "ended 75\n"
