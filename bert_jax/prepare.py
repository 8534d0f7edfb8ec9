"""Make a pre-training data set from text: `bert-jax prepare --input='texts/*.txt' --out=DIR`."""

import dataclasses
import functools
import math
import shlex
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from bert_jax import cli, jax_internals, usage
from bert_jax.config import BERT_EPOCHS, CHOICES, DataConfig, TrainConfig
from bert_jax.data.bucket_datasets import build_in_bucket
from bert_jax.data.builder import RUNNERS, build_dataset, describe_inputs
from bert_jax.data.dataset_info import DatasetInfo
from bert_jax.errors import UserError
from bert_jax.invocation import command, next_steps
from bert_jax.locations import is_bucket

_DEFAULTS = DataConfig()

_INPUT = flags.DEFINE_string(
    "input", "", "Required. Files, folders, globs, tfds:NAME or embedded; several separated by commas."
)
_OUT = flags.DEFINE_string(
    "out", None, "Required, except with --dry_run. Folder to write the data set to, here or gs://BUCKET/FOLDER."
)
_VOCAB = flags.DEFINE_string(
    "vocab",
    _DEFAULTS.vocab,
    "vocab.txt, a folder that contains one, or a SentencePiece .model; empty: learn one from the input.",
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size",
    0,
    "Size of the vocabulary to learn, or the maximum size of an existing one; 0: 30522, or no maximum.",
    lower_bound=0,
)
_MAX_SEQ_LENGTH = flags.DEFINE_list("max_seq_length", ["128", "512"], "Sequence lengths to build, separated by commas.")
_OBJECTIVE = flags.DEFINE_enum("objective", _DEFAULTS.objective, CHOICES["data.objective"], "Pre-training objective.")
_FORMAT = flags.DEFINE_enum(
    "format", _DEFAULTS.format, CHOICES["data.format"], "Format of the text; auto: detected, file by file."
)
_TEXT_COLUMN = flags.DEFINE_string(
    "text_column",
    _DEFAULTS.text_column,
    "Column of the text in CSV, TSV, parquet and arrow files: its name, or in CSV and TSV without a header its number "
    "from 1; of several, separated by commas, the first that a file has.",
)
_TEXT_KEY = flags.DEFINE_string(
    "text_key",
    _DEFAULTS.text_key,
    "Key of the text in JSON files; dots lead into nested objects, as in meta.body; of several, separated by commas, "
    "the first that has a text.",
)
_DOCUMENTS = flags.DEFINE_string(
    "documents",
    _DEFAULTS.documents,
    "A document of plain text: lines (each line), blank_lines (what is between blank lines), or a separator such as "
    "'<|endoftext|>'; empty: what the format says.",
)
_LANGUAGE = flags.DEFINE_string("language", _DEFAULTS.language, "ISO 639-1 language code, for sentence splitting.")
_DO_LOWER_CASE = flags.DEFINE_bool(
    "do_lower_case", _DEFAULTS.do_lower_case, "Lower-case the text; an existing vocabulary must agree."
)
_STRIP_ACCENTS = flags.DEFINE_enum(
    "strip_accents",
    _DEFAULTS.strip_accents,
    CHOICES["data.strip_accents"],
    "Remove accents and other non-spacing marks; auto: as the vocabulary says, and for a new one as --do_lower_case, "
    "except in scripts whose vowels or tones are such marks (Thai, Hindi, ...).",
)
_HELDOUT_FRACTION = flags.DEFINE_float(
    "heldout_fraction", _DEFAULTS.heldout_fraction, "Fraction of the documents held out for evaluation."
)
_SHORT_SEQ_PROB = flags.DEFINE_float(
    "short_seq_prob", _DEFAULTS.short_seq_prob, "Fraction of instances made shorter than the maximum length."
)
_PACK = flags.DEFINE_bool(
    "pack",
    _DEFAULTS.pack,
    "Sequence packing: several instances per sequence; attention stays within each instance.",
)
_MAX_INSTANCES_PER_ROW = flags.DEFINE_integer(
    "max_instances_per_row",
    _DEFAULTS.max_instances_per_row,
    "Most instances in a packed sequence; 0: max_seq_length / 32, at least 4.",
    lower_bound=0,
)
_MAX_INSTANCE_LENGTH = flags.DEFINE_integer(
    "max_instance_length",
    _DEFAULTS.max_instance_length,
    "Longest instance in a packed sequence, as in --pack --max_seq_length=512 --max_instance_length=128; "
    "0: max_seq_length.",
    lower_bound=0,
)
_SEED = flags.DEFINE_integer("seed", _DEFAULTS.seed, "Seed of the split and of the sentence pairs.", lower_bound=0)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", _DEFAULTS.num_workers, "Worker processes; 0: one per core.", lower_bound=0
)
_RECIPE = flags.DEFINE_enum(
    "recipe",
    "modern",
    CHOICES["recipe"],
    "How sentence pairs are sampled; original: as google-research/bert does.",
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only report what was found in the input; write nothing.")
_RUNNER = flags.DEFINE_enum("runner", "local", RUNNERS, "Runner: processes on this machine, or Apache Beam.")
_BEAM_OPTIONS = flags.DEFINE_string(
    "beam_options", "", "Options for --runner=beam, as in '--runner=FlinkRunner --parallelism=9'."
)


def main() -> None:
    """Build the data set that the flags describe."""
    if not _INPUT.value:
        raise UserError("--input is missing: name files, a folder or a glob in quotes, as in --input='texts/*.txt'")
    config = DataConfig(
        input=_INPUT.value,
        format=_FORMAT.value,
        text_column=_TEXT_COLUMN.value,
        text_key=_TEXT_KEY.value,
        documents=_DOCUMENTS.value,
        language=_LANGUAGE.value,
        vocab=_VOCAB.value,
        do_lower_case=_DO_LOWER_CASE.value,
        strip_accents=_STRIP_ACCENTS.value,
        objective=_OBJECTIVE.value,
        short_seq_prob=_SHORT_SEQ_PROB.value,
        pack=_PACK.value,
        max_instances_per_row=_MAX_INSTANCES_PER_ROW.value,
        max_instance_length=_MAX_INSTANCE_LENGTH.value,
        heldout_fraction=_HELDOUT_FRACTION.value,
        num_workers=_NUM_WORKERS.value,
        seed=_SEED.value,
    )
    lengths = _lengths(_MAX_SEQ_LENGTH.value)
    out = _OUT.value or ""
    if not out and not _DRY_RUN.value:
        raise UserError("--out is missing: name the folder to write the data set to, for example --out=data")
    try:
        if _DRY_RUN.value:
            describe_inputs(config, out=out, max_seq_lengths=lengths, vocab_size=_VOCAB_SIZE.value, report=_report)
            return
        build = functools.partial(
            build_dataset,
            config,
            max_seq_lengths=lengths,
            vocab_size=_VOCAB_SIZE.value,
            recipe=_RECIPE.value,
            runner=_RUNNER.value,
            beam_arguments=shlex.split(_BEAM_OPTIONS.value),
            report=_report,
        )
        info = (
            build_in_bucket(out, build=lambda folder: build(out=folder), report=_report)
            if is_bucket(out)
            else build(out=out)
        )
        print(_epochs(info))
        print(_next_steps(config, lengths))
    except UserError as error:
        raise UserError(_as_flags(str(error))) from error


def _epochs(info: DatasetInfo) -> str:
    """Return how many steps go through the text once, and as often as BERT's training went through its text."""
    batch, rows, epochs = TrainConfig().batch_size, info.num_train_rows, BERT_EPOCHS
    return (
        f"epochs: {math.ceil(rows / batch):,} steps of {batch} go through the {rows:,} sequences of "
        f"{info.max_seq_length} once; {epochs} times, as BERT did (--config.train.num_epochs={epochs}): "
        f"{math.ceil(epochs * rows / batch):,} steps"
    )


def _next_steps(config: DataConfig, lengths: list[int]) -> str:
    """Return the commands that train on the data set: fields of its config that differ from the defaults are named."""
    fields = _fields(config)
    colab = dict(fields)
    if 128 not in lengths:
        colab["train.phases[0].max_seq_length"] = lengths[0]
        colab["train.phases[0].max_predictions_per_seq"] = 0  # the config has 20, those of 128 tokens
    train = _train("configs/colab_tpu.py", fields=colab, workdir="runs/small")
    if 128 not in lengths:
        train += "\n(max_predictions_per_seq=0: as many as config.masking.rate says)"
    if jax_internals.has_tpu_devices() or Path("/dev/nvidia0").exists():
        return next_steps(train)
    length = 64 if 64 in lengths else min(lengths)
    tiny: dict[str, object] = {**fields, "model.vocab_size": 0}  # 0: that of the data set
    if length != 64:
        tiny["train.phases[0].max_seq_length"] = length
    if length > 128:
        tiny["model.max_position_embeddings"] = length
    return (
        next_steps(
            _train("configs/tiny_cpu.py", fields=tiny, workdir="runs/tiny"),
        )
        + f"\non a TPU or GPU, a model of a useful size, which would take this machine's CPU months:\n    {train}"
    )


def _train(config: str, *, fields: Mapping[str, object], workdir: str) -> str:
    overrides = [shlex.quote(f"--config.{name}={value}") for name, value in fields.items()]
    directory = shlex.quote(f"--config.data.directory={_OUT.value}")
    return command("train", f"--config={config}", directory, *overrides, f"--workdir={workdir}")


def _fields(config: DataConfig) -> dict[str, object]:
    names = ("objective", "do_lower_case", "pack", "max_instances_per_row", "max_instance_length", "strip_accents")
    values = {name: (getattr(config, name), getattr(_DEFAULTS, name)) for name in names}
    fields: dict[str, object] = {f"data.{name}": value for name, (value, default) in values.items() if value != default}
    if _RECIPE.value != "modern":
        fields["recipe"] = _RECIPE.value
    return fields


def _report(line: str) -> None:
    print(_as_flags(line))


def _as_flags(message: str) -> str:
    fields = {"vocab_size", *(field.name for field in dataclasses.fields(DataConfig))}
    return usage.as_flags(message, names=fields & set(flags.FLAGS))


def _lengths(items: list[str]) -> list[int]:
    if not all(item.strip().isdecimal() for item in items):
        raise UserError(
            f"--max_seq_length={','.join(items)}: write whole numbers separated by commas, for example 128,512"
        )
    return [int(item) for item in items]


if __name__ == "__main__":
    cli.run(main, buckets=("out",))
