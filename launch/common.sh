# shellcheck shell=bash
# Shared by the launchers: one-line errors, required variables, commands that --dry_run prints instead of running.
# Sourced, not run.
# shellcheck disable=SC2034  # the variables are used by the scripts that source this

USAGE_ERROR=2
RESTART=75  # preempted after saving, or another host was lost (bert_jax/parallel/distributed.py)
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MOUNT=/mnt/share  # mount point of the NFS export on every host
DRY_RUN=
KEEP=

fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-$USAGE_ERROR}"
}

say() { printf '[launcher] %s\n' "$*"; }

# need NAME 'description': fail if the variable is not set.
need() { [ -n "${!1:-}" ] || fail "$1 is not set: $2"; }

# Print words as shell input, quoted only if necessary.
shown() {
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]] || word=${word@Q}
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Run a command; with --dry_run, print it.
run() {
  if [ -n "$DRY_RUN" ]; then shown "$@"; else "$@"; fi
}

# run_from FILE COMMAND...: run COMMAND with FILE as input; with --dry_run, print it.
run_from() {
  if [ -n "$DRY_RUN" ]; then printf '%s < %s\n' "$(shown "${@:2}")" "$(shown "$1")"; else "${@:2}" < "$1"; fi
}

# With --dry_run, print a note between commands.
note() {
  if [ -n "$DRY_RUN" ]; then printf '# %s\n' "$*"; fi
}

# Print a launcher's manual: the comment at the top of its file.
manual() {
  sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p;};}' "$1"
}

# Read the launcher's own flags; FLAGS_READ is the number of arguments read, including --.
read_flags() {
  FLAGS_READ=$#
  while [[ ${1:-} == --* ]]; do
    case $1 in
      --) shift; break ;;
      --dry_run) DRY_RUN=1 ;;
      --keep) KEEP=1 ;;
      --help) manual "$0"; exit 0 ;;
      *) fail "unknown flag $1: write flags for training after --" ;;
    esac
    shift
  done
  FLAGS_READ=$((FLAGS_READ - $#))
}

# Fail if the remaining arguments contain no flags for training.
need_training_flags() {
  [ $# -gt 0 ] || fail "no flags for training: write them after --, for example -- --config=configs/base_tpu.py"
}

# Archive the committed files: every host gets the same, known code.
pack() {
  local file=$1
  if [ -n "$(git -C "$REPOSITORY" status --porcelain --untracked-files=no)" ]; then
    say "uncommitted changes are not included: the hosts get HEAD" >&2
  fi
  run git -C "$REPOSITORY" archive --format=tar.gz --output="$file" HEAD
}
