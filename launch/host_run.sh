#!/usr/bin/env bash
# Train on this host, and start again while that may help; the launchers start it on every host of a run.
#
#   launch/host_run.sh [--dry_run] -- --config=FILE --workdir=DIR ...   the flags of python -m bert_jax.train
#   launch/host_run.sh --state                                          "running", "ended STATUS" or "gone"
#
# Statuses 75 (preempted, or another host lost) and those of kills start it again, MAX_RESTARTS (100) times at most;
# any other ends it. Where one host is preempted the others end with 75 too, come back here and wait for it. Exit status:
# that of training; 75 only where this host itself was stopped, 1 where the restarts are used up.
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
    echo gone  # the machine was restarted under it
  fi
}

while [[ ${1:-} == --* ]]; do
  case $1 in
    --) shift; break ;;
    --dry_run) DRY_RUN=1 ;;
    --state) state; exit 0 ;;
    --help) manual "$0"; exit 0 ;;
    *) fail "unknown flag $1: flags for training go behind --" ;;
  esac
  shift
done
[ $# -gt 0 ] || fail "no flags for training: write them behind --, for example -- --config=configs/base_tpu.py"
command=("$PYTHON" -m bert_jax.train "$@")
if [ -n "$DRY_RUN" ]; then shown "${command[@]}"; exit 0; fi
if [ "$(state)" = running ]; then say "runs already"; exit 0; fi

cd "$REPOSITORY"  # configs/ is there
child='' stopped=''
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM INT
echo "running $$" > "$STATE"
for (( starts = 1; ; starts++ )); do
  "${command[@]}" &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null || true  # SIGTERM came before there was a child to hand it to
  while wait "$child" && status=0 || status=$?; kill -0 "$child" 2>/dev/null; do :; done  # a trap interrupts wait
  case $status in
    "$RESTART" | 134 | 137 | 143) ;;  # SIGABRT is how jax ends where the host that coordinates is lost
    *) break ;;
  esac
  child=''
  if [ -z "$stopped" ]; then
    if [ "$starts" -gt "${MAX_RESTARTS:-100}" ]; then say "${MAX_RESTARTS:-100} restarts are used up"; status=1; break; fi
    say "status $status: starting again ($starts)"
    sleep "${RESTART_SECONDS:-5}" &
    child=$!
    wait "$child" || true  # a trap interrupts wait, not a sleep in the foreground
    child=''
  fi
  if [ -n "$stopped" ]; then status=$RESTART; break; fi  # after the pause: SIGTERM may come in it
done
echo "ended $status" > "$STATE"
say "ended with status $status"
exit "$status"
