#!/usr/bin/env bash
# Train on a group of Compute Engine machines (GPUs or CPUs) that heals itself: preempted machines come back and resume.
#
#   PROJECT=... ZONE=... GROUP=... HOSTS=2 MACHINE_TYPE=g2-standard-48 IMAGE_FAMILY=... IMAGE_PROJECT=... \
#     BUCKET=gs://... SHARE=10.0.0.2:/share launch/gce.sh [--dry_run] [--keep] -- --config=configs/base_tpu.py \
#     --config.data.directory=/mnt/share/data --workdir=/mnt/share/base
#
# Behind -- stand the flags of python -m bert_jax.train, the same on every host. GROUP names the managed instance group
# and, numbered from 0, its machines; the image must have the NVIDIA driver, or be a Deep Learning VM image, which
# installs it. SHARE (HOST:/PATH of an NFS server, for example Filestore) is mounted at /mnt/share on every host: data and
# workdir must be there. BUCKET is a folder in Cloud Storage for the code, which machines fetch when they start. The same
# command again goes on watching a group that is there already. At the end the group is deleted (--keep: left, and paid
# for). Optional: ACCELERATOR=type=nvidia-tesla-t4,count=1 (machine types with GPUs of their own need none), EXTRA (cuda;
# - for CPUs), SPOT=0 (not preemptible), MAX_RESTARTS (100), POLL_SECONDS (60), and CREATE_FLAGS: further flags of
# gcloud compute instance-templates create, for example CREATE_FLAGS=--network=mine.
#
# Exit status: 0 finished, 2 something to mend, otherwise that of the host that failed.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

read_flags "$@"
shift "$FLAGS_READ"
need PROJECT "the Google Cloud project"
need ZONE "the zone that has such machines, for example us-central1-a"
need GROUP "a name for the group, yours to choose"
need HOSTS "the number of machines"
need MACHINE_TYPE "the machines, for example g2-standard-48"
need IMAGE_FAMILY "the system's image family, for example ubuntu-2404-lts-amd64 for CPUs"
need IMAGE_PROJECT "the project of the image family, for example ubuntu-os-cloud"
need BUCKET "gs://... for the code that the machines fetch"
need SHARE "HOST:/PATH of an NFS server that the hosts reach, for example a Filestore instance"
[[ $HOSTS =~ ^[1-9][0-9]*$ ]] || fail "HOSTS=$HOSTS: must be a number of machines, at least 1"
[[ $BUCKET == gs://* ]] || fail "BUCKET=$BUCKET: must begin with gs://"
need_training_flags "$@"

where=(--project="$PROJECT" --zone="$ZONE")
read -ra create_flags <<< "${CREATE_FLAGS:-}"
if [ -n "${ACCELERATOR:-}" ]; then create_flags+=(--accelerator="$ACCELERATOR"); fi
# STOP lets the group start the same machine again.
if [ "${SPOT:-1}" = 1 ]; then create_flags+=(--provisioning-model=SPOT --instance-termination-action=STOP); fi
poll_seconds=${POLL_SECONDS:-60}
fetched=${BUCKET%/}/$GROUP.tar.gz
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -n "$DRY_RUN" ]; then files=/tmp; else files=$scratch; fi

# Names within the zone survive a machine's re-creation, addresses need not.
coordinator=$GROUP-0.$ZONE.c.$PROJECT.internal:8476
metadata=(
  enable-guest-attributes=TRUE  # a host tells its state through them
  install-nvidia-driver=True    # what Deep Learning VM images look for; others ignore it
  bert-jax-bundle="$fetched" bert-jax-share="$SHARE" bert-jax-extra="${EXTRA:-cuda}"
  bert-jax-coordinator="$coordinator" bert-jax-hosts="$HOSTS" bert-jax-max-restarts="${MAX_RESTARTS:-100}"
)

upload() {
  pack "$files/bert_jax.tar.gz" || return
  run tar -xzf "$files/bert_jax.tar.gz" -C "$files" launch || return  # the scripts in the metadata are of HEAD, too
  run gcloud storage cp "$files/bert_jax.tar.gz" "$fetched" --project="$PROJECT"
}

template() {
  local joined
  joined=$(IFS=,; echo "${metadata[*]}")
  note "bert-jax-flags: $(shown "$@")"
  # A file: flags may have commas, which part metadata.
  if [ -z "$DRY_RUN" ]; then shown "$@" > "$files/bert-jax-flags" || return; fi
  run gcloud compute instance-templates create "$GROUP" --project="$PROJECT" --machine-type="$MACHINE_TYPE" \
    --image-family="$IMAGE_FAMILY" --image-project="$IMAGE_PROJECT" --boot-disk-size="${DISK_SIZE:-100GB}" \
    --maintenance-policy=TERMINATE "${create_flags[@]}" --metadata="$joined" \
    --metadata-from-file="startup-script=$files/launch/host_startup.sh,shutdown-script=$files/launch/host_shutdown.sh,bert-jax-flags=$files/bert-jax-flags"
}

# Each step ends it: behind || and if, where it is called, `set -e` does not.
create() {
  local index
  upload || return
  template "$@" || return
  run gcloud compute instance-groups managed create "$GROUP" "${where[@]}" --template="$GROUP" --size=0 || return
  for (( index = 0; index < HOSTS; index++ )); do
    run gcloud compute instance-groups managed create-instance "$GROUP" "${where[@]}" --instance="$GROUP-$index" || return
  done
}

# Whether the group is there already.
describe() { run gcloud compute instance-groups managed describe "$GROUP" "${where[@]}"; }

delete() {
  run gcloud compute instance-groups managed delete "$GROUP" "${where[@]}" --quiet &&
    run gcloud compute instance-templates delete "$GROUP" --project="$PROJECT" --quiet
}

# The commands that delete it, for the user.
made() {
  echo "gcloud compute instance-groups managed delete $GROUP ${where[*]}; gcloud compute instance-templates delete $GROUP --project=$PROJECT"
}

# What one host says: "running", "ended STATUS", "away" when it is preempted, nothing while it is gone.
host_state() {
  run gcloud compute instances get-guest-attributes "$GROUP-$1" "${where[@]}" --query-path=bert-jax/state \
    --format='value(value)'
}

# "ended STATUS" once all ended or one failed, else "N of HOSTS running".
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
  note "a group that is there already is only watched:"
  describe
  note "otherwise it is made"
  create "$@"
  note "until every host ended (each starts again by itself), every $poll_seconds s, of every host:"
  host_state 0
  note "at the end"
  [ -n "$KEEP" ] || delete
  exit 0
fi

if describe > "$scratch/group" 2> "$scratch/error"; then
  say "the group $GROUP is there already: watching it"
else
  create "$@" || fail "the group could not be made, why stands above; before the next try delete what was made: $(made)"
fi
last=
while told=$(hosts_state); [[ $told != ended\ * ]]; do
  if [ "$told" != "$last" ]; then say "$GROUP: $told"; fi
  last=$told
  sleep "$poll_seconds"
done
status=${told#ended }
if [ -n "$KEEP" ]; then
  say "the group is left; this deletes it: $(made)"
else
  delete || say "not all was deleted, what is left is paid for; this deletes it: $(made)"
fi
say "ended with status $status"
exit "$status"
