#!/usr/bin/env bash
# Train on a managed group of Compute Engine machines (GPUs or CPUs): preempted machines restart and resume.
#
#   PROJECT=... ZONE=... GROUP=... HOSTS=2 MACHINE_TYPE=g2-standard-48 IMAGE_FAMILY=... IMAGE_PROJECT=... \
#     BUCKET=gs://... SHARE=10.0.0.2:/share launch/gce.sh [--dry_run] [--keep] -- --config=configs/base_tpu.py \
#     --config.data.directory=/mnt/share/data --workdir=/mnt/share/base
#
# After -- come the flags of python -m bert_jax.train, the same for every host. GROUP is the name of the managed instance
# group and the prefix of its machines' names (numbered from 0). The image must include the NVIDIA driver, or be a Deep
# Learning VM image, which installs it. SHARE (HOST:/PATH of an NFS server, for example Filestore) is mounted at
# /mnt/share on every host: data and workdir must be there. BUCKET is a Cloud Storage folder for the code, which machines
# download when they start. Run again, the same command resumes watching an existing group. At the end the group is
# deleted; with --keep it is left running and billed. Optional: ACCELERATOR=type=nvidia-tesla-t4,count=1 (not for machine
# types with built-in GPUs), EXTRA (cuda; - for CPUs), SPOT=0 (not preemptible), MAX_RESTARTS (100), POLL_SECONDS (60),
# and CREATE_FLAGS: further flags of gcloud compute instance-templates create, for example CREATE_FLAGS=--network=mine.
#
# Exit status: 0 finished, 2 an error to fix, otherwise the status of the host that failed.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

read_flags "$@"
shift "$FLAGS_READ"
need PROJECT "the Google Cloud project"
need ZONE "the zone that has such machines, for example us-central1-a"
need GROUP "a name of your choice for the group"
need HOSTS "the number of machines"
need MACHINE_TYPE "the machine type, for example g2-standard-48"
need IMAGE_FAMILY "the image family of the operating system, for example ubuntu-2404-lts-amd64 for CPUs"
need IMAGE_PROJECT "the project of the image family, for example ubuntu-os-cloud"
need BUCKET "a gs://... folder for the code that the machines download"
need SHARE "HOST:/PATH of an NFS server reachable from the hosts, for example a Filestore instance"
[[ $HOSTS =~ ^[1-9][0-9]*$ ]] || fail "HOSTS=$HOSTS: must be a number of machines, at least 1"
[[ $BUCKET == gs://* ]] || fail "BUCKET=$BUCKET: must begin with gs://"
need_training_flags "$@"

where=(--project="$PROJECT" --zone="$ZONE")
read -ra create_flags <<< "${CREATE_FLAGS:-}"
if [ -n "${ACCELERATOR:-}" ]; then create_flags+=(--accelerator="$ACCELERATOR"); fi
# STOP, so the group can restart the same machine.
if [ "${SPOT:-1}" = 1 ]; then create_flags+=(--provisioning-model=SPOT --instance-termination-action=STOP); fi
poll_seconds=${POLL_SECONDS:-60}
fetched=${BUCKET%/}/$GROUP.tar.gz
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -n "$DRY_RUN" ]; then files=/tmp; else files=$scratch; fi

# DNS names survive re-creation of a machine; addresses may not.
coordinator=$GROUP-0.$ZONE.c.$PROJECT.internal:8476
metadata=(
  enable-guest-attributes=TRUE  # a host reports its state in them
  install-nvidia-driver=True    # for Deep Learning VM images; others ignore it
  bert-jax-bundle="$fetched" bert-jax-share="$SHARE" bert-jax-extra="${EXTRA:-cuda}"
  bert-jax-coordinator="$coordinator" bert-jax-hosts="$HOSTS" bert-jax-max-restarts="${MAX_RESTARTS:-100}"
)

upload() {
  pack "$files/bert_jax.tar.gz" || return
  run tar -xzf "$files/bert_jax.tar.gz" -C "$files" launch || return  # the scripts in the metadata come from HEAD too
  run gcloud storage cp "$files/bert_jax.tar.gz" "$fetched" --project="$PROJECT"
}

template() {
  local joined
  joined=$(IFS=,; echo "${metadata[*]}")
  note "bert-jax-flags: $(shown "$@")"
  # In a file, because flags may contain commas, which separate metadata entries.
  if [ -z "$DRY_RUN" ]; then shown "$@" > "$files/bert-jax-flags" || return; fi
  run gcloud compute instance-templates create "$GROUP" --project="$PROJECT" --machine-type="$MACHINE_TYPE" \
    --image-family="$IMAGE_FAMILY" --image-project="$IMAGE_PROJECT" --boot-disk-size="${DISK_SIZE:-100GB}" \
    --maintenance-policy=TERMINATE "${create_flags[@]}" --metadata="$joined" \
    --metadata-from-file="startup-script=$files/launch/host_startup.sh,shutdown-script=$files/launch/host_shutdown.sh,bert-jax-flags=$files/bert-jax-flags"
}

# Each step returns on failure: `set -e` has no effect in a function called in || or if.
create() {
  local index
  upload || return
  template "$@" || return
  run gcloud compute instance-groups managed create "$GROUP" "${where[@]}" --template="$GROUP" --size=0 || return
  for (( index = 0; index < HOSTS; index++ )); do
    run gcloud compute instance-groups managed create-instance "$GROUP" "${where[@]}" --instance="$GROUP-$index" || return
  done
}

# Succeed if the group exists already.
describe() { run gcloud compute instance-groups managed describe "$GROUP" "${where[@]}"; }

delete() {
  run gcloud compute instance-groups managed delete "$GROUP" "${where[@]}" --quiet &&
    run gcloud compute instance-templates delete "$GROUP" --project="$PROJECT" --quiet
}

# Print the commands that delete the group, for the user.
deletion() {
  echo "gcloud compute instance-groups managed delete $GROUP ${where[*]}; gcloud compute instance-templates delete $GROUP --project=$PROJECT"
}

# Print the state of one host: "running", "ended STATUS", "away" if it is preempted, nothing while it does not exist.
host_state() {
  run gcloud compute instances get-guest-attributes "$GROUP-$1" "${where[@]}" --query-path=bert-jax/state \
    --format='value(value)'
}

# Print "ended STATUS" once all hosts ended or one failed, else "N of HOSTS running".
hosts_state() {
  local index state running=0 finished=0
  for (( index = 0; index < HOSTS; index++ )); do
    state=$(host_state "$index" 2> "$scratch/error") || state=
    case $state in
      "ended 0") finished=$((finished + 1)) ;;
      ended\ *) echo "$state"; return ;;
      running) running=$((running + 1)) ;;
    esac
  done
  if [ "$finished" -eq "$HOSTS" ]; then echo "ended 0"; else echo "$running of $HOSTS running"; fi
}

if [ -n "$DRY_RUN" ]; then
  note "an existing group is only watched:"
  describe
  note "otherwise it is created:"
  create "$@"
  note "until every host has ended (hosts restart by themselves), every $poll_seconds s, for every host:"
  host_state 0
  note "at the end:"
  [ -n "$KEEP" ] || delete
  exit 0
fi

if describe > "$scratch/group" 2> "$scratch/error"; then
  say "the group $GROUP exists already: watching it"
else
  create "$@" || fail "the group could not be created, for the reason above; before you try again, delete what was created: $(deletion)"
fi
last=
while state=$(hosts_state); [[ $state != ended\ * ]]; do
  if [ "$state" != "$last" ]; then say "$GROUP: $state"; fi
  last=$state
  sleep "$poll_seconds"
done
status=${state#ended }
if [ -n "$KEEP" ]; then
  say "the group is still running and billed; to delete it: $(deletion)"
else
  delete || say "not everything was deleted, and the rest is still billed; to delete it: $(deletion)"
fi
say "ended with status $status"
exit "$status"
