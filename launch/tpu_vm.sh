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
# (--keep: left, and paid for). Optional: SPOT=0 (not preemptible), MAX_RESTARTS (100), POLL_SECONDS (60), SSH_SECONDS
# (300, for one look at all hosts), and CREATE_FLAGS, SSH_FLAGS: further flags of gcloud, for example
# CREATE_FLAGS=--internal-ips SSH_FLAGS=--tunnel-through-iap. SSH asks nothing: a key with a passphrase needs ssh-agent.
#
# A TPU that is lost is asked for again, MAX_RESTARTS times at most. One where no host ever answers is left, for SSH
# itself may be what fails.
#
# Exit status: 0 finished, 2 something to mend, 75 where MAX_RESTARTS are used up, otherwise that of the host that failed.
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
poll_seconds=${POLL_SECONDS:-60} max_restarts=${MAX_RESTARTS:-100}
ssh_seconds=${SSH_SECONDS:-300} install_seconds=3600  # the latter for apt's lock and for downloads
answered='' silent=0 replaced=0  # what this TPU's hosts did, and how many TPUs were lost
tell_state='bash ~/bert_jax/launch/host_run.sh --state 2>/dev/null || echo gone'
scratch=$(mktemp -d)
child=''
trap 'rm -rf "$scratch"' EXIT
trap '[ -z "$child" ] || kill "$child" 2>/dev/null || true; exit 130' INT TERM
bundle=$scratch/bert_jax.tar.gz
if [ -n "$DRY_RUN" ]; then bundle=/tmp/bert_jax.tar.gz; fi

create() {
  run gcloud compute tpus queued-resources create "$TPU_NAME" "${where[@]}" --node-id="$TPU_NAME" \
    --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" "${create_flags[@]}"
}

# --force deletes the node with the request.
delete() { run gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet; }
deletion() { echo "gcloud compute tpus queued-resources delete $TPU_NAME ${where[*]} --force"; }  # for the user

# within SECONDS COMMAND...: SSH waits for ever where packets are dropped, and for answers to questions. In the background,
# so that Ctrl-C is heard at once: timeout has its command in a process group that the terminal does not reach.
within() {
  local status=0
  if [ -n "$DRY_RUN" ]; then run_from /dev/null timeout --kill-after=30 "$@"; return; fi
  timeout --kill-after=30 "$@" < /dev/null &
  child=$!
  wait "$child" || status=$?
  child=''
  if [ "$status" -eq 124 ]; then echo "nothing within $1 s" >&2; fi
  return "$status"
}

# on_all COMMAND [SECONDS]
on_all() {
  within "${2:-$ssh_seconds}" gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker=all --quiet \
    "${ssh_flags[@]}" --command="$1"
}

# What the last look at the hosts complained of.
last_error() { tail -n 1 "$scratch/error"; }

# Ask for another TPU in place of one that is lost, but not for ever.
replace() {
  say "$1: asking for a new TPU ($((replaced + 1)) of $max_restarts)"
  delete || return 0  # counted once: the next poll tries again
  answered='' silent=0 replaced=$((replaced + 1))
  [ "$replaced" -le "$max_restarts" ] ||
    fail "$replaced TPUs were lost, MAX_RESTARTS=$max_restarts: give the same command again to go on" "$RESTART"
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
    case $state in ACTIVE | UNKNOWN) ;; *) answered='' silent=0 ;; esac  # another TPU
    case $state in
      ACTIVE) return ;;
      NONE) create || fail "the TPU could not be asked for: gcloud says why above" ;;
      FAILED)
        failures=$((failures + 1))
        [ "$failures" -lt 3 ] || fail "the request failed 3 times: gcloud compute tpus queued-resources describe $TPU_NAME ${where[*]} says why"
        delete || true
        ;;
      SUSPENDED) replace "the TPU is lost" ;;
    esac
    sleep "$poll_seconds"
  done
}

# Put into `hosts` what the hosts say: "ended STATUS" once all ended, one failed or one stopped after saving (75),
# "running", "gone" (not started), "silent", or "partly silent".
look_at_hosts() {
  local answer=$scratch/hosts all=1 failed
  on_all "$tell_state" > "$answer" 2> "$scratch/error" || all=''
  failed=$(grep -E '^ended ' "$answer" | grep -vE '^ended (0|75)$' | sort | uniq -c | sort -rn | awk 'NR == 1 {print $3}') || true
  if [ -n "$failed" ]; then
    hosts="ended $failed"
  elif ! grep -qE '^(ended|running|gone)' "$answer"; then
    hosts=silent
  elif [ -z "$all" ]; then
    hosts="partly silent"
  elif grep -q '^gone' "$answer"; then
    hosts=gone
  elif grep -q '^ended 75' "$answer"; then
    hosts="ended $RESTART"  # before running: the others wait for the one that stopped
  elif grep -q '^running' "$answer"; then
    hosts=running
  else
    hosts="ended 0"
  fi
}

# Hosts that run are left alone: one of many may have been restarted under its run. || return: callers test the outcome,
# where `set -e` is off.
install() {
  within "$install_seconds" gcloud compute tpus tpu-vm scp "$bundle" "$TPU_NAME:bert_jax.tar.gz" "${where[@]}" \
    --worker=all --quiet "${ssh_flags[@]}" || return
  on_all "bash ~/bert_jax/launch/host_run.sh --state 2>/dev/null | grep -q ^running || \
{ mkdir -p ~/bert_jax && tar -xzf ~/bert_jax.tar.gz -C ~/bert_jax && ~/bert_jax/launch/host_install.sh tpu $(shown "$SHARE"); }" "$install_seconds"
}

# Detached: the run outlives this connection and this machine. Hosts that run already stay as they are (host_run.sh).
start() {
  on_all "(setsid nohup env MAX_RESTARTS=$max_restarts ~/bert_jax/launch/host_run.sh -- $(shown "$@") >> ~/bert_jax.log 2>&1 < /dev/null &)"
}

# Told five times that hosts are silent, give up this TPU: preempted machines vanish before the request's state says so.
hear_nothing() {
  local who="no host answers"
  if [ "$hosts" != silent ]; then who="some hosts do not answer"; fi
  silent=$((silent + 1))
  say "$who ($silent of 5): $(last_error)"
  [ "$silent" -ge 5 ] || return 0
  [ -n "$answered" ] || fail "no host of $TPU_NAME ever answered ($(last_error)): mend SSH (firewall rule, key) and give the same \
command again; the TPU is left and paid for, this deletes it: $(deletion)"
  replace "$who"
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
  on_all "$tell_state"
  note "at the end"
  on_all 'tail -n 20 ~/bert_jax.log'
  [ -n "$KEEP" ] || delete
  exit 0
fi

pack "$bundle"
status='' failures=0
while [ -z "$status" ]; do
  acquire
  look_at_hosts
  case $hosts in silent) ;; "partly silent") answered=1 ;; *) answered=1 silent=0 ;; esac
  case $hosts in
    running) sleep "$poll_seconds" ;;
    "ended 75") say "hosts stopped after saving: starting them again"; start "$@" || true; sleep "$poll_seconds" ;;
    ended\ *) status=${hosts#ended } ;;
    gone)
      say "installing and starting on every host"
      if install && start "$@"; then
        failures=0
      elif [ "$(resource_state)" = ACTIVE ]; then  # else the TPU was preempted meanwhile
        failures=$((failures + 1))
        [ "$failures" -lt 3 ] || { say "installing failed 3 times: gcloud says why above"; status=1; }
        sleep "$poll_seconds"
      fi
      ;;
    *silent) hear_nothing; sleep "$poll_seconds" ;;
  esac
done
on_all 'tail -n 20 ~/bert_jax.log' || true
if [ -n "$KEEP" ]; then
  on_all 'rm -f ~/bert_jax.state' || true  # the next run is another
  say "the TPU is left; this deletes it: $(deletion)"
else
  delete || say "the TPU was not deleted and is still paid for"
fi
say "ended with status $status"
exit "$status"
