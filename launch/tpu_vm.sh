#!/usr/bin/env bash
# Train on a TPU VM pod: queue for it, install, run on every host, again after every preemption, until it is finished.
#
#   PROJECT=... ZONE=... TPU_NAME=... ACCELERATOR_TYPE=v5litepod-16 RUNTIME_VERSION=v2-alpha-tpuv5-lite \
#     SHARE=10.0.0.2:/share launch/tpu_vm.sh [--dry_run] [--keep] -- --config=configs/base_tpu.py \
#     --config.data.directory=/mnt/share/data --workdir=/mnt/share/base
#
# Behind -- stand the flags of python -m bert_jax.train, the same on every host. SHARE (HOST:/PATH of an NFS server, for
# example Filestore) is mounted at /mnt/share on every host: data and workdir must be there, for a preempted machine's
# disk is lost. The same command again goes on watching a run that is there already. At the end the TPU is deleted
# (--keep: left, and paid for). Optional: SPOT=0 (not preemptible), MAX_RESTARTS (100), POLL_SECONDS (60), and
# CREATE_FLAGS, SSH_FLAGS: further flags of gcloud, for example CREATE_FLAGS=--internal-ips
# SSH_FLAGS=--tunnel-through-iap.
#
# Exit status: 0 finished, 2 something to mend, otherwise that of the host that failed.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

read_flags "$@"
shift "$FLAGS_READ"
need PROJECT "the Google Cloud project"
need ZONE "the zone that has such TPUs, for example europe-west4-b"
need TPU_NAME "a name for the TPU, yours to choose"
need ACCELERATOR_TYPE "the pod, for example v5litepod-16"
need RUNTIME_VERSION "the TPU's software, for example v2-alpha-tpuv5-lite for v5e, v2-alpha-tpuv6e for v6e"
need SHARE "HOST:/PATH of an NFS server that the hosts reach, for example a Filestore instance"
need_training_flags "$@"

where=(--project="$PROJECT" --zone="$ZONE")
read -ra create_flags <<< "${CREATE_FLAGS:-}"
read -ra ssh_flags <<< "${SSH_FLAGS:-}"
if [ "${SPOT:-1}" = 1 ]; then create_flags+=(--spot); fi
poll_seconds=${POLL_SECONDS:-60}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
bundle=$scratch/bert_jax.tar.gz
if [ -n "$DRY_RUN" ]; then bundle=/tmp/bert_jax.tar.gz; fi

create() {
  run gcloud compute tpus queued-resources create "$TPU_NAME" "${where[@]}" --node-id="$TPU_NAME" \
    --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" "${create_flags[@]}"
}

# --force deletes the node with the request.
delete() { run gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet; }

on_all() {
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker=all "${ssh_flags[@]}" --command="$1"
}

# The request's state in a word; NONE if there is no request, UNKNOWN if nobody answers.
resource_state() {
  local text
  if text=$(gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" --format='value(state.state)' \
    2> "$scratch/error"); then
    echo "${text:-UNKNOWN}"
  elif grep -qiE 'NOT_FOUND|not found|does not exist' "$scratch/error"; then
    echo NONE
  else
    echo UNKNOWN
  fi
}

# Wait in the queue, with a new request where there is none or the old one is spent. A request that fails three times
# running asks for what cannot be had; it is left, to be looked at, and costs nothing.
acquire() {
  local state last='' failures=0
  while :; do
    state=$(resource_state)
    if [ "$state" != "$last" ]; then say "$TPU_NAME: $state"; fi
    last=$state
    case $state in
      ACTIVE) return ;;
      NONE) create || fail "the TPU could not be asked for: gcloud says why above" ;;
      FAILED)
        failures=$((failures + 1))
        [ "$failures" -lt 3 ] || fail "the request failed 3 times: gcloud compute tpus queued-resources describe $TPU_NAME ${where[*]} says why"
        delete || true
        ;;
      SUSPENDED) delete || true ;;
    esac
    sleep "$poll_seconds"
  done
}

# What the hosts say: "ended STATUS" once all ended or one failed, "running", "gone" (not started), or "silent".
hosts_state() {
  local lines failed
  lines=$(on_all 'bash ~/bert_jax/launch/host_run.sh --state 2>/dev/null || echo gone' 2> "$scratch/error") ||
    { echo silent; return; }
  failed=$(grep -E '^ended ' <<< "$lines" | grep -vE '^ended (0|75)$' | sort | uniq -c | sort -rn | awk 'NR == 1 {print $3}') || true
  if [ -n "$failed" ]; then
    echo "ended $failed"
  elif grep -q '^gone' <<< "$lines"; then
    echo gone
  elif grep -q '^running' <<< "$lines"; then
    echo running
  elif grep -q '^ended 75' <<< "$lines"; then
    echo "ended $RESTART"
  elif grep -q '^ended 0' <<< "$lines"; then
    echo "ended 0"
  else
    echo silent
  fi
}

# Hosts that run are left alone: one of many may have been restarted under its run.
install() {
  run gcloud compute tpus tpu-vm scp "$bundle" "$TPU_NAME:bert_jax.tar.gz" "${where[@]}" --worker=all "${ssh_flags[@]}"
  on_all "bash ~/bert_jax/launch/host_run.sh --state 2>/dev/null | grep -q ^running || \
{ mkdir -p ~/bert_jax && tar -xzf ~/bert_jax.tar.gz -C ~/bert_jax && ~/bert_jax/launch/host_install.sh tpu $(shown "$SHARE"); }"
}

# Detached: the run outlives this connection and this machine.
start() {
  on_all "(setsid nohup env MAX_RESTARTS=${MAX_RESTARTS:-100} ~/bert_jax/launch/host_run.sh -- $(shown "$@") >> ~/bert_jax.log 2>&1 < /dev/null &)"
}

if [ -n "$DRY_RUN" ]; then
  note "what is committed goes to the hosts"
  pack "$bundle"
  note "the queue: asked for once, and again after every preemption (states FAILED, SUSPENDED)"
  create
  note "until the state is ACTIVE, every $poll_seconds s:"
  run gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" --format='value(state.state)'
  note "on every host:"
  install
  start "$@"
  note "until every host ended (each starts again by itself on status 75), every $poll_seconds s:"
  on_all 'bash ~/bert_jax/launch/host_run.sh --state'
  note "at the end"
  on_all 'tail -n 20 ~/bert_jax.log'
  [ -n "$KEEP" ] || delete
  exit 0
fi

pack "$bundle"
status='' silent=0 preemptions=0
while [ -z "$status" ]; do
  acquire
  hosts=$(hosts_state)
  case $hosts in
    running) silent=0; sleep "$poll_seconds" ;;
    "ended 75") say "the hosts stopped after saving: starting them again"; start "$@" || true; sleep "$poll_seconds" ;;
    ended\ *) status=${hosts#ended } ;;
    gone)
      silent=0
      say "installing and starting on every host"
      if ! install || ! start "$@"; then
        [ "$(resource_state)" != ACTIVE ] || { say "installing failed: gcloud says why above"; status=1; }
      fi
      ;;
    silent)  # preempted machines vanish before the request's state says so
      silent=$((silent + 1))
      if [ "$silent" -ge 5 ]; then
        preemptions=$((preemptions + 1)) silent=0
        [ "$preemptions" -le "${MAX_RESTARTS:-100}" ] || { status=$RESTART; break; }
        say "no host answers: asking for a new TPU ($preemptions)"
        delete || true
      fi
      sleep "$poll_seconds"
      ;;
  esac
done
on_all 'tail -n 20 ~/bert_jax.log' || true
if [ -n "$KEEP" ]; then
  on_all 'rm -f ~/bert_jax.state' || true  # the next run is another
  say "the TPU is left; this deletes it: gcloud compute tpus queued-resources delete $TPU_NAME ${where[*]} --force"
else
  delete || say "the TPU was not deleted and is still paid for"
fi
say "ended with status $status"
exit "$status"
