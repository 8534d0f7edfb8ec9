"""The data set of a run: opened or built, and checked against the vocabulary and the config."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from bert_jax.config import Config, instances_per_row
from bert_jax.data.accents import with_accents
from bert_jax.data.builder import build_dataset
from bert_jax.data.dataset_info import DatasetInfo, load_dataset_info, require_shards
from bert_jax.data.tokenization import Tokenizer, load_tokenizer
from bert_jax.errors import UserError
from bert_jax.locations import is_bucket
from bert_jax.parallel.distributed import Hosts
from bert_jax.rows.special_ids import SpecialIds


@dataclasses.dataclass(frozen=True)
class OpenData:
    """The data set of each length, and the tokenizer that all of them were built with."""

    infos: dict[int, DatasetInfo]
    tokenizer: Tokenizer

    @property
    def special(self) -> SpecialIds:
        """Return the special ids that masking needs."""
        return self.tokenizer.special_ids

    @property
    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of vocabulary and data, by their names in messages."""
        infos = self.infos.values()
        return {"vocabulary": next(iter(infos)).vocabulary_fingerprint} | {
            f"data of length {info.max_seq_length}": info.data_fingerprint for info in infos
        }


def open_data(
    config: Config,
    *,
    workdir: Path,
    max_seq_lengths: tuple[int, ...],
    hosts: Hosts,
    report: Callable[[str], None],
    keep_vocabulary: bool = False,
) -> OpenData:
    """Open data set and vocabulary on every host; host 0 builds them first if they do not exist.

    The vocabulary is written to the workdir, for export; with `keep_vocabulary` only if there is none.

    Raises:
      UserError: for anything the user can fix; if hosts see different data, it names the host.
    """
    if is_bucket(config.data.directory):  # all hosts download at the same time
        for length in max_seq_lengths:
            info = load_dataset_info(config.data.directory, max_seq_length=length)
            require_shards(config.data.directory, info=info, report=report)
    with hosts.main_first("data set"):
        infos = open_datasets(
            config, workdir=workdir, max_seq_lengths=max_seq_lengths, build=hosts.is_main, report=report
        )
        data = OpenData(infos, open_tokenizer(next(iter(infos.values()))))
        if hosts.is_main and not (keep_vocabulary and (workdir / "vocab").is_dir()):
            # Always rewritten: an earlier run that saved no checkpoint may have had another vocabulary.
            data.tokenizer.save(workdir / "vocab")
    hosts.check_same("vocabulary and data", {name: value[:12] for name, value in data.fingerprints.items()})
    return data


def open_datasets(
    config: Config,
    *,
    workdir: Path,
    max_seq_lengths: tuple[int, ...],
    build: bool = True,
    report: Callable[[str], None],
) -> dict[int, DatasetInfo]:
    """Return the data set of each length: from `data.directory`, or built from `data.input` in WORKDIR/data.

    With `build` False, another host has built it already.

    Raises:
      UserError: if there is nothing to train on, or config and data set disagree; the message names both sides.
    """
    data = config.data
    if data.directory:
        directory = data.directory if is_bucket(data.directory) else Path(data.directory)
    elif data.input:
        directory = workdir / "data"
        if build:
            build_dataset(
                data,
                out=directory,
                max_seq_lengths=max_seq_lengths,
                vocab_size=config.model.vocab_size,
                recipe=config.recipe,
                leave_out=[workdir],
                flag="--workdir",
                report=report,
            )
    else:
        raise UserError(
            "config.data: there is nothing to train on: set --config.data.directory=DIR to a data set built by "
            "`bert-jax prepare --input='GLOB' --out=DIR`, or set --config.data.input='GLOB' to build one in "
            "the workdir"
        )
    infos = {length: load_dataset_info(directory, max_seq_length=length) for length in max_seq_lengths}
    for info in infos.values():
        _check(config, info)
    return infos


def open_tokenizer(info: DatasetInfo) -> Tokenizer:
    """Return the tokenizer that the data set was built with."""
    return load_tokenizer(info.vocab_directory)


def _check(config: Config, info: DatasetInfo) -> None:
    where = f"the data set in {info.directory}"
    tokenizer = open_tokenizer(info)
    if 0 < config.model.vocab_size < max(tokenizer.vocab_size, info.max_token_id + 1):
        needed = max(tokenizer.vocab_size, info.max_token_id + 1)
        raise UserError(
            f"config.model.vocab_size={config.model.vocab_size} is smaller than the vocabulary of {where}, which has "
            f"{needed} tokens: set --config.model.vocab_size={needed}"
        )
    if tokenizer.fingerprint != info.vocabulary_fingerprint:
        raise UserError(
            f"{info.vocab_directory} is not the vocabulary that {where} was built with (fingerprint "
            f"{tokenizer.fingerprint[:12]}, expected {info.vocabulary_fingerprint[:12]}): restore that vocabulary, or "
            "run prepare again"
        )
    if config.data.vocab:
        loaded = load_tokenizer(config.data.vocab, do_lower_case=config.data.do_lower_case)
        tokenizer = with_accents(loaded, config.data.strip_accents)
        if tokenizer.fingerprint != info.vocabulary_fingerprint:
            raise UserError(
                f"config.data.vocab={config.data.vocab} is not the vocabulary of {where} (fingerprint "
                f"{tokenizer.fingerprint[:12]}, the data set has {info.vocabulary_fingerprint[:12]}): leave "
                "config.data.vocab empty to use the data set's vocabulary"
            )
    for field in ("do_lower_case", "objective"):
        requested, built = getattr(config.data, field), getattr(info, field)
        if requested != built:
            raise UserError(
                f"config.data.{field}={requested}, but {where} was built with {field}={built}: set "
                f"--config.data.{field}={built}, or build another data set"
            )
    requested, built = config.data.strip_accents, "yes" if open_tokenizer(info).strip_accents else "no"
    if requested not in ("auto", built):
        raise UserError(
            f"config.data.strip_accents={requested}, but {where} was built with strip_accents={built}: set "
            f"--config.data.strip_accents={built}, or build another data set"
        )
    _check_packing(config, info, where)
    if config.recipe != info.recipe:
        raise UserError(
            f"config.recipe={config.recipe}, but {where} was built with --recipe={info.recipe}: set "
            f"--config.recipe={info.recipe}, or build another data set"
        )


def _check_packing(config: Config, info: DatasetInfo, where: str) -> None:
    """Check the number of instances per sequence: it is a shape of the step and determines the prediction slots."""
    requested = instances_per_row(config.data, max_seq_length=info.max_seq_length)
    built = info.instances_per_row
    if requested == built:
        return
    if 1 in (requested, built):
        is_packed = built > 1
        raise UserError(
            f"config.data.pack={config.data.pack}, but {where} was built {'with' if is_packed else 'without'} --pack: "
            f"set --config.data.pack={is_packed}, or build another data set"
        )
    raise UserError(
        f"the sequences of {info.max_seq_length} tokens in {where} have at most {built} instances, "
        f"config.data.max_instances_per_row={config.data.max_instances_per_row} means {requested}: set "
        f"--config.data.max_instances_per_row={built}, or build another data set"
    )
