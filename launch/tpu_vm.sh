#!/usr/bin/env bash
# Train on a TPU VM pod: queue, install, run on every host, and restart after every preemption until it is finished.
#
#   PROJECT=... ZONE=... TPU_NAME=... ACCELERATOR_TYPE=v5litepod-16 RUNTIME_VERSION=v2-alpha-tpuv5-lite \
#     SHARE=10.0.0.2:/share launch/tpu_vm.sh [--dry_run] [--keep] -- --config=configs/base_tpu.py \
#     --config.data.directory=/mnt/share/data --workdir=/mnt/share/base
#
# After -- come the flags of python -m bert_jax.train, the same for every host. SHARE (HOST:/PATH of an NFS server, for
# example Filestore) is mounted at /mnt/share on every host: data and workdir must be there, because a preempted machine
# loses its disk. With data and workdir in a bucket (gs://), type SHARE=- EXTRA=tpu,gcs. Run again, the same command resumes watching an existing run. At the end the TPU is deleted; with
# --keep it is left running and billed. Optional: SPOT=0 (not preemptible), MAX_RESTARTS (100), POLL_SECONDS (60),
# SSH_SECONDS (300, to query all hosts), and CREATE_FLAGS, SSH_FLAGS: further flags of gcloud, for example
# CREATE_FLAGS=--internal-ips SSH_FLAGS=--tunnel-through-iap. SSH is not interactive: a key with a passphrase needs
# ssh-agent.
#
# A lost TPU is requested again, at most MAX_RESTARTS times. A TPU of which no host ever answered is not deleted, because
# SSH itself may be the problem.
#
# Exit status: 0 finished, 2 an error to fix, 75 if no restarts are left, otherwise the status of the host that failed.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

read_flags "$@"
shift "$FLAGS_READ"
need PROJECT "the Google Cloud project"
need ZONE "the zone that has such TPUs, for example europe-west4-b"
need TPU_NAME "a name of your choice for the TPU"
need ACCELERATOR_TYPE "the type of pod, for example v5litepod-16"
need RUNTIME_VERSION "the TPU's software, for example v2-alpha-tpuv5-lite for v5e, v2-alpha-tpuv6e for v6e"
need SHARE "HOST:/PATH of an NFS server reachable from the hosts, for example a Filestore instance; - for none"
need_training_flags "$@"

where=(--project="$PROJECT" --zone="$ZONE")
read -ra create_flags <<< "${CREATE_FLAGS:-}"
read -ra ssh_flags <<< "${SSH_FLAGS:-}"
if [ "${SPOT:-1}" = 1 ]; then create_flags+=(--spot); fi
poll_seconds=${POLL_SECONDS:-60} max_restarts=${MAX_RESTARTS:-100}
ssh_seconds=${SSH_SECONDS:-300} install_seconds=3600  # includes waiting for apt's lock, and downloads
answered='' silent=0 replaced=0  # whether hosts of this TPU ever answered, polls without answer, TPUs lost
query_state='bash ~/bert_jax/launch/host_run.sh --state 2>/dev/null || echo gone'
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

# --force also deletes the node.
delete() { run gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet; }
deletion() { echo "gcloud compute tpus queued-resources delete $TPU_NAME ${where[*]} --force"; }  # printed for the user

# within SECONDS COMMAND...: a time limit, because SSH waits forever for dropped packets and for answers to prompts. The
# command runs in the background so that Ctrl-C works immediately: timeout puts it in another process group.
within() {
  local status=0
  if [ -n "$DRY_RUN" ]; then run_from /dev/null timeout --kill-after=30 "$@"; return; fi
  timeout --kill-after=30 "$@" < /dev/null &
  child=$!
  wait "$child" || status=$?
  child=''
  if [ "$status" -eq 124 ]; then echo "no answer within $1 s" >&2; fi
  return "$status"
}

# on_all COMMAND [SECONDS]
on_all() {
  within "${2:-$ssh_seconds}" gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker=all --quiet \
    "${ssh_flags[@]}" --command="$1"
}

# Print the last error of querying the hosts.
last_error() { tail -n 1 "$scratch/error"; }

# Request another TPU in place of a lost one, at most max_restarts times.
replace() {
  say "$1: requesting a new TPU ($((replaced + 1)) of $max_restarts)"
  delete || return 0  # counted only once: the next poll tries again
  answered='' silent=0 replaced=$((replaced + 1))
  [ "$replaced" -le "$max_restarts" ] ||
    fail "$replaced TPUs were lost, MAX_RESTARTS=$max_restarts: run the same command again to resume" "$RESTART"
}

# Print the state of the request; NONE if there is no request, UNKNOWN if gcloud fails.
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

# Wait in the queue, with a new request if there is none or the old one ended. A request that fails three times in a row
# is probably impossible; it is left for inspection and costs nothing.
acquire() {
  local state last='' failures=0
  while :; do
    state=$(resource_state)
    if [ "$state" != "$last" ]; then say "$TPU_NAME: $state"; fi
    last=$state
    case $state in ACTIVE | UNKNOWN) ;; *) answered='' silent=0 ;; esac  # another TPU
    case $state in
      ACTIVE) return ;;
      NONE) create || fail "the TPU could not be requested, for the reason that gcloud gives above" ;;
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

# Set `hosts` to the state of the hosts: "ended STATUS" once all ended, one failed or one stopped after saving (75),
# "running", "gone" (not started), "silent", or "partly silent".
query_hosts() {
  local answer=$scratch/hosts all=1 failed
  on_all "$query_state" > "$answer" 2> "$scratch/error" || all=''
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
    hosts="ended $RESTART"  # takes precedence over running: the others wait for the host that stopped
  elif grep -q '^running' "$answer"; then
    hosts=running
  else
    hosts="ended 0"
  fi
}

# Skip hosts that are running: only one of them may have been restarted. || return is necessary because callers test the
# result, which disables `set -e`.
install() {
  within "$install_seconds" gcloud compute tpus tpu-vm scp "$bundle" "$TPU_NAME:bert_jax.tar.gz" "${where[@]}" \
    --worker=all --quiet "${ssh_flags[@]}" || return
  on_all "bash ~/bert_jax/launch/host_run.sh --state 2>/dev/null | grep -q ^running || \
{ mkdir -p ~/bert_jax && tar -xzf ~/bert_jax.tar.gz -C ~/bert_jax && ~/bert_jax/launch/host_install.sh $(shown "${EXTRA:-tpu}" "$SHARE"); }" "$install_seconds"
}

# Detached: the run survives this connection and this machine. Hosts that are already running ignore it (host_run.sh).
start() {
  on_all "(setsid nohup env MAX_RESTARTS=$max_restarts ~/bert_jax/launch/host_run.sh -- $(shown "$@") >> ~/bert_jax.log 2>&1 < /dev/null &)"
}

# After five polls without answer, give up this TPU: preempted machines vanish before the request's state shows it.
handle_silence() {
  local who="no host answers"
  if [ "$hosts" != silent ]; then who="some hosts do not answer"; fi
  silent=$((silent + 1))
  say "$who ($silent of 5): $(last_error)"
  [ "$silent" -ge 5 ] || return 0
  [ -n "$answered" ] || fail "no host of $TPU_NAME ever answered ($(last_error)): fix SSH (firewall rule, key) and run the same \
command again; the TPU still exists and is billed, to delete it: $(deletion)"
  replace "$who"
}

if [ -n "$DRY_RUN" ]; then
  note "the committed files go to the hosts:"
  pack "$bundle"
  note "the request: once, and again after every preemption (states FAILED, SUSPENDED):"
  create
  note "until the state is ACTIVE, every $poll_seconds s:"
  run gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" --format='value(state.state)'
  note "on every host:"
  install
  start "$@"
  note "until every host has ended (hosts restart by themselves on status 75), every $poll_seconds s:"
  on_all "$query_state"
  note "at the end:"
  on_all 'tail -n 20 ~/bert_jax.log'
  [ -n "$KEEP" ] || delete
  exit 0
fi

pack "$bundle"
status='' failures=0
while [ -z "$status" ]; do
  acquire
  query_hosts
  case $hosts in silent) ;; "partly silent") answered=1 ;; *) answered=1 silent=0 ;; esac
  case $hosts in
    running) sleep "$poll_seconds" ;;
    "ended 75") say "hosts stopped after saving: restarting them"; start "$@" || true; sleep "$poll_seconds" ;;
    ended\ *) status=${hosts#ended } ;;
    gone)
      say "installing and starting training on every host"
      if install && start "$@"; then
        failures=0
      elif [ "$(resource_state)" = ACTIVE ]; then  # else the TPU was preempted meanwhile
        failures=$((failures + 1))
        [ "$failures" -lt 3 ] || { say "installation failed 3 times, for the reason that gcloud gives above"; status=1; }
        sleep "$poll_seconds"
      fi
      ;;
    *silent) handle_silence; sleep "$poll_seconds" ;;
  esac
done
on_all 'tail -n 20 ~/bert_jax.log' || true
if [ -n "$KEEP" ]; then
  on_all 'rm -f ~/bert_jax.state' || true  # the next run starts without a state
  say "the TPU is still running and billed; to delete it: $(deletion)"
else
  delete || say "the TPU could not be deleted and is still billed; to delete it: $(deletion)"
fi
say "ended with status $status"
exit "$status"
