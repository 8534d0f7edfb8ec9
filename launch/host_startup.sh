#!/usr/bin/env bash
# Install and train on a Compute Engine machine whenever it starts: the startup script of the group created by gce.sh.
#
#   launch/host_startup.sh [--dry_run]     on the machine, as root; its settings are in the machine's metadata
#
# It is self-contained: it downloads the package, so it cannot source anything from it.
set -euo pipefail

case ${1:-} in
  "" | --dry_run) DRY_RUN=${1:-} ;;
  --help) sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p;};}' "$0"; exit 0 ;;
  *) echo "error: unknown flag $1: --help lists them" >&2; exit 2 ;;
esac

run() { if [ -n "$DRY_RUN" ]; then echo "$*"; else "$@"; fi; }

export HOME=/root
export BERT_JAX_STATE=${BERT_JAX_STATE:-/root/bert_jax.state}  # host_shutdown.sh reads it
server=http://metadata.google.internal/computeMetadata/v1/instance
read_metadata() {
  if [ -n "$DRY_RUN" ]; then echo "<$1>"; else curl -fsS -H 'Metadata-Flavor: Google' "$server/attributes/$1"; fi
}
report_state() {
  run curl -fsS -X PUT --data "$1" -H 'Metadata-Flavor: Google' "$server/guest-attributes/bert-jax/state"
}

# At shutdown, the reader of this script's output exits before the script: writing into that pipe would kill training
# while it saves. tee -p continues with the file.
if [ -z "$DRY_RUN" ]; then exec > >(exec tee -p -a "${BERT_JAX_LOG:-/var/log/bert_jax.log}") 2>&1; fi

leave() {
  # Preempted: the group restarts this machine. Anything else, also a failed installation, ends the run.
  if [ "$status" -eq 75 ]; then report_state away; else report_state "ended $status"; fi
}

report_state running
run rm -f "$BERT_JAX_STATE"  # from before a restart of the machine: its PID may belong to another process now
status=1
trap 'status=75; exit 75' TERM
trap leave EXIT
name=$(hostname -s)
JAX_COORDINATOR_ADDRESS=$(read_metadata bert-jax-coordinator)
JAX_NUM_PROCESSES=$(read_metadata bert-jax-hosts)
JAX_PROCESS_ID=${name##*-}  # the machine's name ends with its number
MAX_RESTARTS=$(read_metadata bert-jax-max-restarts)
export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID MAX_RESTARTS

folder=${BERT_JAX_FOLDER:-/opt/bert_jax}
if [ ! -x "$folder/.venv/bin/python" ]; then
  run mkdir -p "$folder"
  run gcloud storage cp "$(read_metadata bert-jax-bundle)" /tmp/bert_jax.tar.gz
  run tar -xzf /tmp/bert_jax.tar.gz -C "$folder"
fi
run "$folder/launch/host_install.sh" "$(read_metadata bert-jax-extra)" "$(read_metadata bert-jax-share)"
# An open folder keeps the NFS export mounted while training saves.
if [ -z "$DRY_RUN" ]; then exec 9< "${BERT_JAX_MOUNT:-/mnt/share}"; fi
flags=$(read_metadata bert-jax-flags)
if [ -n "$DRY_RUN" ]; then flags='<bert-jax-flags>'; set -f; words=("$flags"); else eval "words=($flags)"; fi  # quoted by gce.sh
run "$folder/launch/host_run.sh" -- "${words[@]}" && status=0 || status=$?
