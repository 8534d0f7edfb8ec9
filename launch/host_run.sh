#!/usr/bin/env bash
# Train on this host, and restart after preemption or a kill; the launchers run this on every host.
#
#   launch/host_run.sh [--dry_run] -- --config=FILE --workdir=DIR ...   the flags of python -m bert_jax.train
#   launch/host_run.sh --state                                          "running", "ended STATUS" or "gone"
#
# Status 75 (preempted, or another host lost) and the statuses of kills restart training, at most MAX_RESTARTS (100)
# times; any other status ends it. If one host is preempted, the others end with 75 too, restart, and wait for it. Exit
# status: that of training; 75 only if this host was stopped, 1 if no restarts are left.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

STATE=${BERT_JAX_STATE:-$HOME/bert_jax.state}
PYTHON=${BERT_JAX_PYTHON:-$REPOSITORY/.venv/bin/python}

state() {
  local word value
  read -r word value 2>/dev/null < "$STATE" || { echo gone; return; }
  if [ "$word" = ended ]; then
    echo "ended $value"
  elif kill -0 "$value" 2>/dev/null; then
    echo running
  else
    echo gone  # the machine was restarted meanwhile
  fi
}

while [[ ${1:-} == --* ]]; do
  case $1 in
    --) shift; break ;;
    --dry_run) DRY_RUN=1 ;;
    --state) state; exit 0 ;;
    --help) manual "$0"; exit 0 ;;
    *) fail "unknown flag $1: write flags for training after --" ;;
  esac
  shift
done
[ $# -gt 0 ] || fail "no flags for training: write them after --, for example -- --config=configs/base_tpu.py"
command=("$PYTHON" -m bert_jax.train "$@")
if [ -n "$DRY_RUN" ]; then shown "${command[@]}"; exit 0; fi
if [ "$(state)" = running ]; then say "already running"; exit 0; fi

cd "$REPOSITORY"  # for relative paths to configs/
child='' stopped=''
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM INT
echo "running $$" > "$STATE"
for (( starts = 1; ; starts++ )); do
  "${command[@]}" &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null || true  # SIGTERM arrived before the child existed
  while wait "$child" && status=0 || status=$?; kill -0 "$child" 2>/dev/null; do :; done  # a trap interrupts wait
  case $status in
    "$RESTART" | 134 | 137 | 143) ;;  # jax ends with SIGABRT if the coordinator host is lost
    *) break ;;
  esac
  child=''
  if [ -z "$stopped" ]; then
    if [ "$starts" -gt "${MAX_RESTARTS:-100}" ]; then say "all ${MAX_RESTARTS:-100} restarts are used up"; status=1; break; fi
    say "status $status: restarting ($starts)"
    sleep "${RESTART_SECONDS:-5}" &
    child=$!
    wait "$child" || true  # a trap interrupts wait, not a sleep in the foreground
    child=''
  fi
  if [ -n "$stopped" ]; then status=$RESTART; break; fi  # checked after the pause: SIGTERM may arrive during it
done
echo "ended $status" > "$STATE"
say "ended with status $status"
exit "$status"
