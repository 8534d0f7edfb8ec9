"""Run a command: parse flags, call one function, turn what the user can fix into one line and exit status 2.

A command imports inside its `main` what it calls: jax takes seconds, and wrong flags and `--help` need none of it.
"""

import functools
import os
import re
import select
import sys
from collections.abc import Callable, Sequence

# The TPU library prints warnings when it looks for TPUs on a machine that has none; jax then goes on with the CPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from bert_jax import jax_internals
from bert_jax.errors import UserError

USAGE_ERROR = 2
PIPE_CLOSED = 141  # as of a command that SIGPIPE ends


def run(main: Callable[[], int | None], *, config: Callable[[], type] | None = None) -> None:
    """Run `main` with parsed flags and exit with what it returns (None is 0).

    `config` gives the class of the command's config, where it is not that of pre-training.

    A `UserError`, a wrong flag or a wrong config override is printed as one line, exit status 2. Ctrl-C exits with 130.
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}: flags are written --name=value; --help lists them")
        jax_internals.quiet("devices")
        try:
            sys.exit(main())
        except UserError as error:
            fail(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            if not _reader_left():
                raise
            sys.exit(PIPE_CLOSED)

    app.run(guarded, flags_parser=functools.partial(_parse, config=config))


def fail(message: str) -> None:
    """Print one line and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def _reader_left() -> bool:
    """Return whether nobody reads the standard output any more (`... | head`), which ends a command quietly."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    left = any(event & select.POLLERR for _, event in poll.poll(0))
    if left:  # what is still in the buffer would fail again when the interpreter closes it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


def _parse(argv: Sequence[str], *, config: Callable[[], type] | None = None) -> list[str]:
    """Parse flags; whatever absl or ml_collections raise for wrong ones becomes one line."""
    _check_config_file(argv)
    try:
        return flags.FLAGS(list(argv), known_only=False)
    except UserError as error:
        fail(str(error))
    except flags.Error as error:
        text = _reason(error)
        fail(re.sub(r"^(FATAL Flags parsing error:)?\s*", "", text) + "; --help lists the flags")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, SyntaxError, ImportError, OSError) as error:
        fail(_config_error(argv, error, config=config))
    raise AssertionError("fail() exits")


def _config_error(argv: Sequence[str], error: Exception, *, config: Callable[[], type] | None) -> str:
    """Name the override or the config file that `error` came from."""
    from bert_jax.config import Config, builder  # not at the start: most commands end without an error

    cls = Config if config is None else config()
    known = builder.field_names(cls)
    absent = re.fullmatch(r"[\W]*(\w+)[\W]*", str(error))
    if isinstance(error, AttributeError | KeyError) and absent and absent[1] in builder.optional_groups(cls):
        paths = [match[1] for text in argv if (match := re.match(rf"--?config\.({absent[1]}\b[^=]*)", text))]
        return builder.absent_group_message(cls, (paths or [absent[1]])[0])
    for argument in argv[1:]:
        match = re.match(r"--?config\.([^=]+)(=(.*))?$", argument)
        if not match:
            continue
        path = match.group(1)
        base = re.sub(r"\[\d+\]", "[0]", path)
        if base not in known and not any(name.startswith((base + ".", base + "[")) for name in known):
            return builder.unknown_field_message(path, known)
        if isinstance(error, IndexError) and "[" in path:
            return f"--config.{path}: the config has no element of that number; they count from 0"
        if path in str(error) or (match.group(3) and match.group(3) in str(error)):
            return f"--config.{path}={match.group(3)}: {_reason(error)}"
    return f"--config: {type(error).__name__}: {_reason(error)}"


def _check_config_file(argv: Sequence[str]) -> None:
    """Look for the config file first: ml_collections reports a missing one by whatever the config is used for next."""
    for index, argument in enumerate(argv[1:], start=1):
        match = re.fullmatch(r"--?config(?:=(.*))?", argument, flags=re.DOTALL)
        if match:
            value = match.group(1) if match.group(1) is not None else "".join(argv[index + 1 : index + 2])
            file = value.partition(":")[0]
            if not os.path.isfile(file):  # noqa: PTH113  "" is no file, and Path("") is the current folder
                fail(f"--config={value}: there is no file {file!r}; look in the folder configs/")


def _reason(error: Exception) -> str:
    """Return an error's text in one line; of a traceback in it, what it ends with."""
    text = str(error)
    if "Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1]
        if "positional argument" in text:
            text = f"the config takes no argument behind a colon ({text})"
    return " ".join(text.split())
