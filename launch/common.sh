# shellcheck shell=bash
# What the launchers share: one-line errors, required variables, commands that --dry_run prints instead of running.
# Sourced, never run.
# shellcheck disable=SC2034  # who sources this uses them

USAGE_ERROR=2
RESTART=75  # preempted after saving, or another host lost (bert_jax/parallel/distributed.py)
REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MOUNT=/mnt/share  # where every host sees the share
DRY_RUN=
KEEP=

fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-$USAGE_ERROR}"
}

say() { printf '[launcher] %s\n' "$*"; }

# need NAME 'what it is': refuse to go on without the variable.
need() { [ -n "${!1:-}" ] || fail "$1 is not set: $2"; }

# Print words as a shell would need them, quoted only where they must be.
shown() {
  local word line=
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]] || word=${word@Q}
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Run a command; with --dry_run print it.
run() {
  if [ -n "$DRY_RUN" ]; then shown "$@"; else "$@"; fi
}

# run_from FILE COMMAND...: run it with FILE as its input; with --dry_run print it.
run_from() {
  if [ -n "$DRY_RUN" ]; then printf '%s < %s\n' "$(shown "${@:2}")" "$(shown "$1")"; else "${@:2}" < "$1"; fi
}

# With --dry_run say what happens between two commands.
note() {
  if [ -n "$DRY_RUN" ]; then printf '# %s\n' "$*"; fi
}

# Print the comment at the head of a launcher: its manual.
manual() {
  sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p;};}' "$1"
}

# Take the launcher's own flags from its arguments; FLAGS_READ says how many words they and -- were.
read_flags() {
  FLAGS_READ=$#
  while [[ ${1:-} == --* ]]; do
    case $1 in
      --) shift; break ;;
      --dry_run) DRY_RUN=1 ;;
      --keep) KEEP=1 ;;
      --help) manual "$0"; exit 0 ;;
      *) fail "unknown flag $1: flags for training go behind --" ;;
    esac
    shift
  done
  FLAGS_READ=$((FLAGS_READ - $#))
}

# Refuse to go on without flags for training among the arguments that are left.
need_training_flags() {
  [ $# -gt 0 ] || fail "no flags for training: write them behind --, for example -- --config=configs/base_tpu.py"
}

# Pack what is committed: every host gets the same code, and the run can say which.
pack() {
  local file=$1
  if [ -n "$(git -C "$REPOSITORY" status --porcelain --untracked-files=no)" ]; then
    say "changes that are not committed stay behind: the hosts get HEAD" >&2
  fi
  run git -C "$REPOSITORY" archive --format=tar.gz --output="$file" HEAD
}
