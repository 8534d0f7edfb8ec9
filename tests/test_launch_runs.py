"""Launchers from beginning to end against a gcloud, xpk and docker that are scripts."""

import os
import re
import shlex
import subprocess
import tarfile

import pytest

from tests.launchers import FLAGS, LAUNCH, NEEDS, ROOT, against_script, count, dry_run, launch


def test_tpu_vm_goes_through_the_queue_to_the_end(tmp_path):
    result, calls = against_script(
        tmp_path,
        "tpu_vm.sh",
        [
            "queued-resources describe => NOT_FOUND => 1",
            "queued-resources describe => WAITING_FOR_RESOURCES",
            "queued-resources describe => PROVISIONING",
            "*queued-resources describe => ACTIVE",
            "|| echo gone => gone|gone",
            "|| echo gone => running|running",
            "|| echo gone => running|ended 0",
            "|| echo gone => ended 0|ended 0",
        ],
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert count(calls, "queued-resources create") == 1
    assert count(calls, "host_install.sh") == count(calls, "setsid") == 1
    assert "--force --quiet" in calls[-1]


def test_tpu_vm_asks_for_a_new_tpu_after_preemption(tmp_path):
    result, calls = against_script(
        tmp_path,
        "tpu_vm.sh",
        [
            "queued-resources describe => ACTIVE",  # of an earlier start: the run goes on
            "|| echo gone => running|running",
            "queued-resources describe => SUSPENDING",
            "queued-resources describe => SUSPENDED",
            "queued-resources describe => NOT_FOUND => 1",
            "*queued-resources describe => ACTIVE",
            "|| echo gone => gone|gone",
            "|| echo gone => ended 75|running",  # the others wait for the one that stopped
            "|| echo gone => running|running",
            "|| echo gone => ended 0|ended 0",
        ],
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert count(calls, "queued-resources create") == 1
    assert count(calls, "queued-resources delete") == 2
    assert count(calls, "host_install.sh") == 1
    assert count(calls, "setsid") == 2  # after 75 without installing


def test_tpu_vm_counts_every_tpu_that_is_lost(tmp_path):
    states = ["queued-resources describe => SUSPENDED", "queued-resources describe => NOT_FOUND => 1"]
    silence = ["|| echo gone => running", *["|| echo gone => refused => 255"] * 5]
    answers = [*states, *states, *silence, "*queued-resources describe => ACTIVE"]
    result, calls = against_script(tmp_path, "tpu_vm.sh", answers, MAX_RESTARTS="2")
    assert result.returncode == 75
    assert result.stderr.splitlines()[-1] == (
        "error: 3 TPUs were lost, MAX_RESTARTS=2: run the same command again to resume"
    )
    assert count(calls, "queued-resources create") == 2
    assert count(calls, "queued-resources delete") == 3


def test_tpu_vm_leaves_a_tpu_whose_hosts_never_answered(tmp_path):
    answers = ["*queued-resources describe => ACTIVE", "*|| echo gone => trying|Permission denied (publickey). => 255"]
    result, calls = against_script(tmp_path, "tpu_vm.sh", answers)
    assert result.returncode == 2
    assert "no host answers (1 of 5): Permission denied (publickey).\n" in result.stdout
    assert re.fullmatch(
        r"error: no host of pod ever answered \(Permission denied \(publickey\)\.\): fix SSH .* run the same command "
        r"again; .* to delete it: gcloud compute tpus queued-resources delete pod .*",
        result.stderr.splitlines()[-1],
    )
    assert count(calls, "queued-resources delete") == 0


def test_tpu_vm_waits_for_ssh_no_longer_than_it_says(tmp_path):
    gcloud = '#!/bin/bash\ncase "$*" in *describe*) echo ACTIVE ;; *) exec sleep 100 ;; esac\n'
    (tmp_path / "gcloud").write_text(gcloud)
    (tmp_path / "gcloud").chmod(0o755)
    environment = {**NEEDS["tpu_vm.sh"], "POLL_SECONDS": "0", "SSH_SECONDS": "0.1"}
    result = launch("tpu_vm.sh", *FLAGS, environment=environment, path=tmp_path)
    assert result.returncode == 2
    assert "no host answers (5 of 5): no answer within 0.1 s" in result.stdout


@pytest.mark.parametrize("step", [pytest.param("tpu-vm scp", marks=pytest.mark.slow), "host_install.sh"])
def test_tpu_vm_stops_where_installing_fails_again_and_again(tmp_path, step):
    answers = ["*queued-resources describe => ACTIVE", f"*{step} => no => 1", "*|| echo gone => gone|gone"]
    result, calls = against_script(tmp_path, "tpu_vm.sh", answers)
    assert result.returncode == 1
    assert "installation failed 3 times" in result.stdout
    assert count(calls, step) == 3
    assert count(calls, "setsid") == 0


@pytest.mark.parametrize(
    "step", ["tpu-vm scp", *(pytest.param(step, marks=pytest.mark.slow) for step in ("host_install.sh", "setsid"))]
)
def test_tpu_vm_tries_again_where_a_connection_breaks_while_installing(tmp_path, step):
    answers = [
        "*queued-resources describe => ACTIVE",
        f"{step} => Connection reset => 255",
        *["|| echo gone => gone|gone"] * 2,
        "|| echo gone => ended 0|ended 0",
    ]
    result, calls = against_script(tmp_path, "tpu_vm.sh", answers)
    assert result.returncode == 0, result.stdout
    assert count(calls, "queued-resources delete") == 1  # at the end


def test_tpu_vm_stops_with_the_status_of_a_host_that_failed_though_another_is_silent(tmp_path):
    (tmp_path / "gcloud").write_text(
        "#!/bin/bash\n"
        f'echo "$*" >> {tmp_path}/calls\n'
        'case "$*" in *describe*) echo ACTIVE ;; *"echo gone"*) echo "ended 2"; exit 255 ;; esac\n'
    )
    (tmp_path / "gcloud").chmod(0o755)
    result = launch("tpu_vm.sh", *FLAGS, environment={**NEEDS["tpu_vm.sh"], "POLL_SECONDS": "0"}, path=tmp_path)
    assert result.returncode == 2
    assert (tmp_path / "calls").read_text().count("queued-resources create") == 0


def test_tpu_vm_hears_a_signal_while_a_command_hangs(tmp_path):
    (tmp_path / "gcloud").write_text(
        f'#!/bin/bash\ncase "$*" in *describe*) echo ACTIVE ;; *) touch {tmp_path}/hangs; exec sleep 100 ;; esac\n'
    )
    (tmp_path / "gcloud").chmod(0o755)
    given = {**os.environ, **NEEDS["tpu_vm.sh"], "PATH": f"{tmp_path}:{os.environ['PATH']}", "POLL_SECONDS": "0"}
    command = [LAUNCH / "tpu_vm.sh", *FLAGS]
    process = subprocess.Popen(command, env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "hangs").exists():
        assert process.poll() is None
    process.terminate()  # as Ctrl-C, which a test that runs in the background of a shell cannot send
    assert process.wait(timeout=10) == 130


def test_tpu_vm_asks_for_a_new_tpu_when_no_host_answers(tmp_path):
    result, calls = against_script(
        tmp_path,
        "tpu_vm.sh",
        [
            "*queued-resources describe => ACTIVE",
            "|| echo gone => running|running",
            *["|| echo gone => connection refused => 255"] * 5,
            "|| echo gone => ended 0|ended 0",
        ],
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no host answers" in result.stdout
    assert count(calls, "queued-resources delete") == 2


def test_tpu_vm_gives_up_a_request_that_fails_three_times(tmp_path):
    answers = ["queued-resources describe => FAILED", "queued-resources describe => NOT_FOUND => 1"] * 3
    result, calls = against_script(tmp_path, "tpu_vm.sh", answers)
    assert result.returncode == 2
    assert re.fullmatch(r"error: the request failed 3 times: .* says why\n", result.stderr.splitlines(True)[-1])
    assert count(calls, "queued-resources create") == 2


@pytest.mark.parametrize("status", [1, 2])
def test_tpu_vm_stops_with_the_status_of_the_host_that_failed(tmp_path, status):
    answers = ["*queued-resources describe => ACTIVE", f"|| echo gone => running|ended {status}|ended 75"]
    result, calls = against_script(tmp_path, "tpu_vm.sh", answers)
    assert result.returncode == status
    assert count(calls, "tail -n 20") == 1
    assert count(calls, "queued-resources delete") == 1


def test_gce_waits_for_all_hosts_and_deletes(tmp_path):
    result, calls = against_script(
        tmp_path,
        "gce.sh",
        [
            "managed describe => was not found => 1",
            "get-guest-attributes group-0 => running",
            "get-guest-attributes group-1 => not there yet => 1",
            "get-guest-attributes group-0 => ended 0",
            "get-guest-attributes group-1 => away",
            "*get-guest-attributes => ended 0",
        ],
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert count(calls, "create-instance group") == 2
    assert calls[-2].startswith("instance-groups managed delete")
    assert calls[-1].startswith("instance-templates delete")


GCE_STEPS = ["archive", "storage cp", "instance-templates create", "managed create ", "managed create-instance"]


@pytest.mark.parametrize("step", GCE_STEPS)
def test_gce_stops_at_the_first_step_that_fails(tmp_path, step):
    names = ["gcloud", "git"] if step == "archive" else ["gcloud"]
    answers = ["managed describe => was not found => 1", f"{step} => no => 1"]
    result, calls = against_script(tmp_path, "gce.sh", answers, names=names)
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: the group could not be created, .*: gcloud compute instance-groups managed delete group .*; "
        r"gcloud compute instance-templates delete group .*",
        result.stderr.splitlines()[-1],
    )
    assert step in calls[-1] + " "


@pytest.mark.parametrize(
    ("script", "answers"),
    [
        ("gce.sh", ["managed describe => was not found => 1", "*get-guest-attributes => ended 0"]),
        (
            "tpu_vm.sh",
            [
                "queued-resources describe => NOT_FOUND => 1",
                "*queued-resources describe => ACTIVE",
                "|| echo gone => gone",
                "|| echo gone => ended 0",
            ],
        ),
    ],
)
def test_a_dry_run_prints_every_command_of_a_run(tmp_path, script, answers):
    printed, _ = dry_run(script, HOSTS="1")
    printed = {" ".join(shlex.split(line.removesuffix(" < /dev/null"))) for line in printed if "gcloud " in line}
    _, calls = against_script(tmp_path, script, answers, HOSTS="1")
    calls = {re.sub(r"/tmp/tmp\.\w+/", "/tmp/", call) for call in calls}
    assert {re.sub(".*?gcloud (compute )?", "", line, count=1) for line in printed} == calls


def test_gke_builds_what_is_committed(tmp_path):
    result, _ = against_script(tmp_path, "gke_xpk.sh", [])
    assert result.returncode == 0, result.stderr
    with tarfile.open(tmp_path / "input") as archive:
        packed = {member.name for member in archive if not member.isdir()}
    committed = subprocess.check_output(["git", "ls-tree", "-r", "--name-only", "HEAD"], cwd=ROOT, text=True)
    assert packed == set(committed.splitlines())


@pytest.mark.parametrize("status", [0, 125])
def test_gke_goes_on_waiting_after_a_week(tmp_path, status):
    wait = "--wait-for-job-completion=base"
    answers = [*[f"{wait} => timed out => 124"] * 2, f"{wait} => the end => {status}"]
    result, calls = against_script(tmp_path, "gke_xpk.sh", answers)
    assert result.returncode == status
    assert count(calls, wait) == 3


def test_gce_goes_on_watching_a_group_and_stops_at_a_failure(tmp_path):
    answers = ["managed describe => there", "attributes group-0 => running", "attributes group-1 => ended 2"]
    result, calls = against_script(tmp_path, "gce.sh", answers)
    assert result.returncode == 2
    assert count(calls, "create") == 0


# The host's own loop: `python` is a script that ends with the statuses of a list.
