"""Run a command: parse flags, call one function, print errors that the user can fix in one line with exit status 2.

Commands import inside `main`: jax takes seconds to import, and `--help` and wrong flags do not need it.
"""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from absl import app, flags

from bert_jax import files, jax_internals, locations, streams, usage
from bert_jax.config import files as config_files
from bert_jax.errors import UserError, choose_one, closest

# On a machine without TPUs, the TPU library prints warnings before jax falls back to the CPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

USAGE_ERROR = 2
HELP = ("--help", "-help", "-h", "--helpshort", "-?")
# What Python and ml_collections say about a value of another type, and what a user reads.
_PLAINER = {
    r"invalid literal for int\(\) with base 10: .*": "must be a whole number",
    r"could not convert string to float: .*": "must be a number",
    r"(?:TypeError: )?Could not override field '(\w+)' \([^)]*\)\. (.*) is of original type <class '(\w+)'> and "
    r"cannot be casted to type <class '(\w+)'>": r"\1: expected \4, got \2 (\3)",
}
# What a config file, or an override that it does not take, raises.
_WRONG_CONFIG = (AttributeError, IndexError, KeyError, TypeError, ValueError, SyntaxError, ImportError, OSError)
_OUTPUTS = ("workdir", "out", "output")
_MODEL_FLAGS = ("model", "checkpoint", "init", "teacher")  # the names of the model in the commands
_NOT_PATHS = ("text",)  # flags whose value may contain a URL


def run(
    main: Callable[[], int | None], *, config: Callable[[], type] | None = None, buckets: Collection[str] = ()
) -> None:
    """Run `main` with parsed flags and exit with its return value (None is 0).

    `config` returns the class of the command's config; the default is the pre-training config. The flags `buckets` may
    be folders in a bucket.

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
        except OSError as error:
            if not (reason := files.system_error(error)):
                raise
            fail(reason)

    streams.prepare()
    if jax_internals.has_useless_libtpu():
        jax_internals.quiet_libtpu()
    if any(argument in HELP for argument in sys.argv[1:]) or sys.argv[1:] == ["help"]:
        _print_help(config or _pretraining)
    if "--version" in sys.argv[1:]:
        print(f"bert_jax {usage.version()}", flush=True)
        sys.exit(0)
    app.run(guarded, flags_parser=functools.partial(_parse, config=config, buckets=buckets))


def _print_help(config: Callable[[], type]) -> None:
    argv = [argument for argument in sys.argv if argument not in HELP]
    file, values = "", {}
    if "config" in flags.FLAGS and _config_argument(argv)[2]:
        argv = _with_config_file(argv)
        _read_flags(argv, config=config, known_only=True)  # who mistyped a flag may want to see those there are
        file, values = _config_argument(argv)[2], flags.FLAGS["config"].value
    print(usage.text(config, file=file, values=values), flush=True)
    sys.exit(0)


def require_config(value: object, *, example: str) -> None:
    """Check that `--config` is given, before anything that takes seconds to import.

    Raises:
      UserError: with the config files there are.
    """
    if value is None:
        raise UserError(
            f"--config is missing: type for example --config={example}; there are {', '.join(_listed_configs(example))}"
        )


def default_workdir() -> str:
    """Return the workdir named after `--config`, and say so."""
    _, _, value = _config_argument(sys.argv)
    workdir = config_files.default_workdir(value)
    print(f"workdir: {workdir} (--workdir=DIR chooses another)", flush=True)
    return workdir


def _listed_configs(like: str) -> list[str]:
    """Return the config files of the command whose config is `like`: fine-tuning, distillation, or the others."""
    names = [name for name in config_files.names() if "reproduce" not in name]
    others = ("finetune", "distill")
    kind = next((kind for kind in others if kind in like), "")
    return [name for name in names if next((other for other in others if other in name), "") == kind]


def _pretraining() -> type:
    from bert_jax.config import Config  # needs ml_collections, which most uses of this module do not

    return Config


def fail(message: str) -> None:
    """Print one line and exit with status 2."""
    with contextlib.suppress(UserError):  # a second error would hide the first
        streams.flush()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(USAGE_ERROR)


def _parse(
    argv: Sequence[str], *, config: Callable[[], type] | None = None, buckets: Collection[str] = ()
) -> list[str]:
    """Parse and check flags; print any error in one line."""
    arguments = _read_flags(_with_config_file(argv), config=config)
    try:
        values = {name: flag for name, flag in flags.FLAGS.flag_values_dict().items() if name not in _NOT_PATHS}
        locations.refuse_urls(
            ((f"--{name}", value) for name, value in values.items()), buckets=[f"--{name}" for name in buckets]
        )
        for name in _OUTPUTS:
            if name in values and flags.FLAGS[name].present and not values[name]:
                raise UserError(f"--{name} is empty: name a folder or file, or leave the flag out")
    except UserError as error:
        fail(str(error))
    return arguments


def _read_flags(argv: Sequence[str], *, config: Callable[[], type] | None, known_only: bool = False) -> list[str]:
    """Set the values of flags; print any error of absl or ml_collections in one line."""
    try:
        return flags.FLAGS(argv, known_only=known_only)
    except UserError as error:
        fail(str(error))
    except flags.UnrecognizedFlagError as error:
        near = _model_flag(error.flagname) or closest(error.flagname, list(flags.FLAGS), n=1)
        hint = f"did you mean --{near[0]}? " if near else ""
        fail(f"--{error.flagname}: there is no such flag; {hint}--help lists the flags")
    except flags.Error as error:
        text = _reason(error)
        if group := re.search(r"--config\.([\w.]+)=.*? as a ConfigDict", text):
            fail(_group_message(group[1]))
        fail(re.sub(r"^(FATAL Flags parsing error:)?\s*", "", text) + "; --help lists the flags")
    except _WRONG_CONFIG as error:
        fail(_config_error(argv, error, config=config))
    raise AssertionError("fail() exits")


def _model_flag(name: str) -> list[str]:
    """Return the flag of this command for the model if `name` is that of another command; a required one first."""
    own = [flag for flag in _MODEL_FLAGS if flag in flags.FLAGS] if name in _MODEL_FLAGS else []
    return sorted(own, key=lambda flag: not (flags.FLAGS[flag].help or "").startswith("Required"))


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


def _group_message(path: str) -> str:
    """Return the error for a group of fields that was given one value."""
    text = f"--config.{path} is a group of fields: set its fields one by one; --help lists them"
    if path == "model":
        text += ". A released size is chosen by name in a config file: default_config(model='base')"
    return text


def _with_config_file(argv: Sequence[str]) -> list[str]:
    """Return the arguments with the config file's path; ml_collections reports a missing one only where it is used."""
    begin, end, value = _config_argument(argv)
    if begin == end:
        return list(argv)
    if "://" in value:
        fail(f"--config={value}: URLs are not supported: copy the file here, and name the copy")
    path = config_files.find(value)
    file, like = config_files.split(path)[0], sys.argv[0] + value
    if not file or not Path(file).is_file():  # Path("") is the current folder
        problem = f"{file!r} is not a file" if file and Path(file).exists() else f"there is no file {file!r}"
        choices = choose_one(config_files.packaged(file) or file, _listed_configs(like))
        fail(f"--config={value}: {problem}; {choices}, or a file of your own")
    return [*argv[:begin], f"--config={path}", *argv[end:]]


def _config_argument(argv: Sequence[str]) -> tuple[int, int, str]:
    """Return begin, end and VALUE of `--config=VALUE` or `--config VALUE` in `argv`; (0, 0, "") if there is neither."""
    for index, argument in enumerate(argv[1:], start=1):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument, flags=re.DOTALL):
            if match.group(1) is not None:
                return index, index + 1, match.group(1)
            return index, index + 2, "".join(argv[index + 1 : index + 2])
    return 0, 0, ""


def _reason(error: Exception) -> str:
    """Return an error's text in one line; for a text with a traceback, its last line and that of the config file."""
    text = str(error)
    if "Traceback (most recent call last)" in text:
        places = re.findall(r'File "([^"]+)", line (\d+)', text)
        of_config = [
            place for place in places if not re.search(r"[/\\](absl|ml_collections|importlib)[/\\]|<", place[0])
        ]
        text = text.strip().splitlines()[-1]
        if of_config:
            text = f"{of_config[-1][0]} line {of_config[-1][1]}: {text}"
        if "positional argument" in text:
            text = f"the config takes no argument after a colon ({text})"
    text = " ".join(text.split())
    for pattern, words in _PLAINER.items():
        text = re.sub(pattern, words, text)
    return text
