#!/usr/bin/env bash
# Let training save when a Compute Engine machine stops: the shutdown script of the group created by gce.sh.
#
#   launch/host_shutdown.sh [--dry_run]     on the machine, as root
#
# The system itself sends SIGTERM too late: the service of startup scripts uses KillMode=process, so their children get
# SIGTERM only after the network is down. A preempted spot machine has about 30 s, a stopped one longer; this script
# waits for at most 90 s. It is self-contained, because it may run before the package is installed.
set -euo pipefail

case ${1:-} in
  "" | --dry_run) DRY_RUN=${1:-} ;;
  --help) sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p;};}' "$0"; exit 0 ;;
  *) echo "error: unknown flag $1: --help lists them" >&2; exit 2 ;;
esac

state=${BERT_JAX_STATE:-/root/bert_jax.state}  # host_run.sh writes it: "running PID" or "ended STATUS"
if [ -n "$DRY_RUN" ]; then echo "kill -TERM <pid in $state>"; exit 0; fi
read -r word pid 2>/dev/null < "$state" || exit 0  # training has not started yet
[ "$word" = running ] || exit 0
kill -TERM "$pid" 2>/dev/null || exit 0
echo "sent SIGTERM to training, which saves and exits"
for (( waited = 0; waited < ${SHUTDOWN_SECONDS:-90}; waited++ )); do
  kill -0 "$pid" 2>/dev/null || exit 0
  sleep 1
done
echo "training did not end within ${SHUTDOWN_SECONDS:-90} s"
