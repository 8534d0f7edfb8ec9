"""Run a command: parse flags, call one function, print errors that the user can fix in one line with exit status 2.

Commands import inside `main`: jax takes seconds to import, and `--help` and wrong flags do not need it.
"""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence

# On a machine without TPUs, the TPU library prints warnings before jax falls back to the CPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

from bert_jax import jax_internals, locations, streams
from bert_jax.errors import UserError

USAGE_ERROR = 2
_NOT_PATHS = ("text",)  # flags whose value may contain a URL


def run(main: Callable[[], int | None], *, config: Callable[[], type] | None = None) -> None:
    """Run `main` with parsed flags and exit with its return value (None is 0).

    `config` returns the class of the command's config; the default is the pre-training config.

    A `UserError`, a wrong flag or a wrong config override prints one line and exits with 2. Ctrl-C exits with 130.
    """

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}: write flags as --name=value; --help lists them")
        jax_internals.quiet("devices")
        try:
            status = main()
            streams.flush()
            sys.exit(status)
        except UserError as error:
            fail(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except MemoryError:
            fail("memory ran out: use a smaller model, batch or input, or a machine with more memory")

    streams.prepare()
    app.run(guarded, flags_parser=functools.partial(_parse, config=config))


def fail(message: str) -> None:
    """Print one line and exit with status 2."""
    with contextlib.suppress(UserError):  # a second error would hide the first
        streams.flush()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def _parse(argv: Sequence[str], *, config: Callable[[], type] | None = None) -> list[str]:
    """Parse flags; print any error of absl or ml_collections in one line."""
    _check_config_file(argv)
    try:
        arguments = flags.FLAGS(list(argv), known_only=False)
        given = {name: flag for name, flag in flags.FLAGS.flag_values_dict().items() if name not in _NOT_PATHS}
        locations.refuse_urls((f"--{name}", value) for name, value in given.items())
        return arguments
    except UserError as error:
        fail(str(error))
    except flags.Error as error:
        text = _reason(error)
        fail(re.sub(r"^(FATAL Flags parsing error:)?\s*", "", text) + "; --help lists the flags")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, SyntaxError, ImportError, OSError) as error:
        fail(_config_error(argv, error, config=config))
    raise AssertionError("fail() exits")


def _config_error(argv: Sequence[str], error: Exception, *, config: Callable[[], type] | None) -> str:
    """Return a message that names the override or the config file that caused `error`."""
    from bert_jax.config import Config, builder  # imported here because most commands have no error

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
            return f"--config.{path}: index out of range; indices start at 0"
        if path in str(error) or (match.group(3) and match.group(3) in str(error)):
            return f"--config.{path}={match.group(3)}: {_reason(error)}"
    return f"--config: {type(error).__name__}: {_reason(error)}"


def _check_config_file(argv: Sequence[str]) -> None:
    """Check that the config file exists: ml_collections reports a missing one only where the config is used."""
    for index, argument in enumerate(argv[1:], start=1):
        match = re.fullmatch(r"--?config(?:=(.*))?", argument, flags=re.DOTALL)
        if match:
            value = match.group(1) if match.group(1) is not None else "".join(argv[index + 1 : index + 2])
            file = value.partition(":")[0]
            if not os.path.isfile(file):  # noqa: PTH113  "" must not match, and Path("") is the current folder
                fail(f"--config={value}: there is no file {file!r}; see the folder configs/")


def _reason(error: Exception) -> str:
    """Return an error's text in one line; for a text with a traceback, its last line."""
    text = str(error)
    if "Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1]
        if "positional argument" in text:
            text = f"the config takes no argument after a colon ({text})"
    return " ".join(text.split())
