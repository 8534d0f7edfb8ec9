"""Open a door: parse flags, call one function, turn what the user can mend into one line and exit status 2."""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence

# The TPU library prints warnings when it looks for TPUs on a machine that has none; jax then goes on with the CPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from bert_jax.errors import UserError

USAGE_ERROR = 2


def run(main: Callable[[], int | None]) -> None:
    """Run `main` with parsed flags and exit with what it returns (None is 0).

    A `UserError`, a wrong flag or a wrong config override is printed as one line, exit status 2. Ctrl-C exits with 130.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends quietly, as for any other command

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}: flags are written --name=value; --help lists them")
        try:
            sys.exit(main())
        except UserError as error:
            fail(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    app.run(guarded, flags_parser=_parse)


def fail(message: str) -> None:
    """Print one line and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parse flags; whatever absl or ml_collections raise for wrong ones becomes one line."""
    try:
        return flags.FLAGS(list(argv), known_only=False)
    except UserError as error:
        fail(str(error))
    except FileNotFoundError as error:
        fail(f"--config: no such file: {error.filename}")
    except flags.Error as error:
        text = " ".join(str(error).split())
        fail(re.sub(r"^(FATAL Flags parsing error:)?\s*", "", text) + "; --help lists the flags")
    except (AttributeError, KeyError, TypeError, ValueError, SyntaxError, ImportError) as error:
        fail(_config_error(argv, error))
    raise AssertionError("fail() exits")


def _config_error(argv: Sequence[str], error: Exception) -> str:
    """Name the override or the config file that `error` came from."""
    from bert_jax import config

    known = list(config.flatten(config.Config()))
    for argument in argv[1:]:
        match = re.match(r"--?config\.([^=]+)(=(.*))?$", argument)
        if not match:
            continue
        path = match.group(1)
        base = re.sub(r"\[\d+\]", "[0]", path)
        if base not in known and not any(name.startswith((base + ".", base + "[")) for name in known):
            return config.unknown_field_message(path, known)
        if path in str(error) or (match.group(3) and match.group(3) in str(error)):
            return f"--config.{path}={match.group(3)}: {' '.join(str(error).split())}"
    return f"--config: {type(error).__name__}: {' '.join(str(error).split())}"
