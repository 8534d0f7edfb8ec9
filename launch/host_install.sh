#!/usr/bin/env bash
# Prepare a host created by the launchers: mount the NFS export, install Python and the package in this checkout.
#
#   launch/host_install.sh [--dry_run] EXTRA SHARE
#
# EXTRA is tpu, cuda, or - for none; SHARE is HOST:/PATH of an NFS server reachable from all hosts, or - for none.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "$0")/common.sh"

while [[ ${1:-} == --* ]]; do
  case $1 in
    --dry_run) DRY_RUN=1 ;;
    --help) manual "$0"; exit 0 ;;
    *) fail "unknown flag $1: --help lists them" ;;
  esac
  shift
done
[ $# -eq 2 ] || fail "give EXTRA and SHARE, for example: launch/host_install.sh tpu 10.0.0.2:/share"
extra=$1 share=$2
package=$REPOSITORY
if [ "$extra" != - ]; then package+="[$extra]"; fi

# Up to 5 tries: unattended-upgrades holds apt's locks on a new machine, and servers fail temporarily.
retry() {
  local try
  for (( try = 1; try < 5; try++ )); do
    if run "$@"; then return; fi
    say "failed, retrying in ${RETRY_SECONDS:-20} s: $(shown "$@")"
    sleep "${RETRY_SECONDS:-20}"
  done
  run "$@"
}

# The timeout is for dpkg's lock; update needs another lock and does not wait for it.
apt_get() { retry sudo DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 "$@"; }

if [ "$share" != - ] && ! mountpoint -q "$MOUNT"; then
  apt_get update
  apt_get install -y nfs-common
  run sudo mkdir -p "$MOUNT"
  # Without lookupcache=positive, a new file of another host may be invisible for half a minute.
  run sudo mount -t nfs -o rw,hard,lookupcache=positive "$share" "$MOUNT"
  run sudo chmod 1777 "$MOUNT"  # a new export belongs to root
fi
# TPU images have Python 3.10, but this package needs 3.11: uv installs a newer one.
if [ ! -x "$HOME/.local/bin/uv" ]; then
  retry bash -o pipefail -c 'curl -LsSf https://astral.sh/uv/install.sh | sh'
fi
run "$HOME/.local/bin/uv" venv --quiet --clear --python 3.12 "$REPOSITORY/.venv"
run "$HOME/.local/bin/uv" pip install --quiet --python "$REPOSITORY/.venv/bin/python" --editable "$package"
