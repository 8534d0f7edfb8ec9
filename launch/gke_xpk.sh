#!/usr/bin/env bash
# Train on a TPU slice of Google Kubernetes Engine with xpk; the cluster restarts it after preemption.
#
#   PROJECT=... ZONE=... CLUSTER=... TPU_TYPE=v5litepod-16 launch/gke_xpk.sh [--dry_run] setup
#   PROJECT=... ZONE=... CLUSTER=... TPU_TYPE=v5litepod-16 WORKLOAD=... IMAGE=europe-docker.pkg.dev/.../bert_jax:1 \
#     launch/gke_xpk.sh [--dry_run] run -- --config=configs/base_tpu.py \
#     --config.data.directory=/mnt/share/data --workdir=/mnt/share/base
#
# setup, once: creates the cluster and a Filestore instance that is mounted at /mnt/share in every workload. run: builds
# and pushes an image of the committed files, starts the workload, and waits until it ends. After -- come the flags of
# python -m bert_jax.train; data and workdir must be in /mnt/share. Needs xpk (pip install xpk), gcloud, kubectl, docker.
# Optional: SPOT=0 (not preemptible), MAX_RESTARTS (100), SHARE_NAME (bert-jax), SHARE_SIZE (1024, in GB), and
# CLUSTER_FLAGS: further flags of xpk cluster create. The cluster (xpk cluster delete) and the Filestore instance are
# billed until you delete them.
#
# Exit status of run: 0 finished, 2 an error to fix, otherwise the status of xpk.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

STEP=
while [ $# -gt 0 ]; do
  case $1 in
    --) shift; break ;;
    --dry_run) DRY_RUN=1 ;;
    --help) manual "$0"; exit 0 ;;
    setup | run) [ -z "$STEP" ] || fail "two steps, $STEP and $1: give only one"; STEP=$1 ;;
    *) fail "unknown step or flag $1: the steps are setup and run; write flags for training after --" ;;
  esac
  shift
done
[ -n "$STEP" ] || fail "no step: type setup to create the cluster, or run to train"
need PROJECT "the Google Cloud project"
need ZONE "the zone that has such TPUs, for example europe-west4-b"
need CLUSTER "a name of your choice for the cluster"
need TPU_TYPE "the slice, for example v5litepod-16"
[ "${SLICES:-1}" = 1 ] || fail "SLICES=$SLICES: training spans one slice; leave SLICES out and name a larger slice, for example TPU_TYPE=v5litepod-256"

where=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")
share=${SHARE_NAME:-bert-jax}
read -ra cluster_flags <<< "${CLUSTER_FLAGS:-}"
if [ "${SPOT:-1}" = 1 ]; then capacity=--spot; else capacity=--on-demand; fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

setup() {
  run xpk cluster create "${where[@]}" --tpu-type="$TPU_TYPE" --num-slices=1 "$capacity" \
    --enable-gcpfilestore-csi-driver "${cluster_flags[@]}"
  run xpk storage create "$share" "${where[@]}" --type=gcpfilestore --mount-point="$MOUNT" --readonly=false \
    --size="${SHARE_SIZE:-1024}" --tier=BASIC_HDD --vol=default --access-mode=ReadWriteMany --auto-mount=false
}

# The context is an archive of HEAD, so the image is reproducible.
build() {
  local context=$scratch/bert_jax.tar.gz
  if [ -n "$DRY_RUN" ]; then context=/tmp/bert_jax.tar.gz; fi
  pack "$context"
  run_from "$context" docker build --platform=linux/amd64 --file=launch/Dockerfile --build-arg=EXTRA=tpu \
    --tag="$IMAGE" -
}

# xpk waits at most a week, then exits with 124 while the workload continues.
wait_for_end() {
  local status=124
  while [ "$status" -eq 124 ]; do
    run xpk workload list "${where[@]}" --wait-for-job-completion="$WORKLOAD" && status=0 || status=$?
  done
  return "$status"
}

train() {
  need WORKLOAD "a name of your choice for the workload: lower-case letters, digits and -"
  need IMAGE "the address of the image in a registry, for example europe-docker.pkg.dev/PROJECT/REPOSITORY/bert_jax:1"
  need_training_flags "$@"
  build
  run docker push "$IMAGE"
  # exec: xpk sends SIGTERM to the shell around the command, which would not forward it.
  # xpk restarts on 42 and 127-255 (which includes kills), and here also on 75; 1 and 2 end the workload.
  run xpk workload create "${where[@]}" --workload="$WORKLOAD" --tpu-type="$TPU_TYPE" --num-slices=1 \
    --docker-image="$IMAGE" --storage="$share" --max-restarts="${MAX_RESTARTS:-100}" \
    --restart-on-exit-codes="$RESTART" --termination-grace-period-seconds=120 \
    --command="exec python -m bert_jax.train $(shown "$@")"
  wait_for_end
}

if [ "$STEP" = setup ]; then setup; else train "$@"; fi
