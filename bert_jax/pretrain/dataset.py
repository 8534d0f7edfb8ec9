"""Find the run's data set, or build it; check that data set, vocabulary and config belong together."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from bert_jax.config import Config, instances_per_row
from bert_jax.data.builder import build_dataset
from bert_jax.data.dataset_info import DatasetInfo, load_dataset_info
from bert_jax.data.tokenization import Tokenizer, load_tokenizer
from bert_jax.errors import UserError
from bert_jax.parallel.distributed import Hosts
from bert_jax.rows.special_ids import SpecialIds


@dataclasses.dataclass(frozen=True)
class OpenData:
    """The data set of each length, and the tokenizer that all of them were made with."""

    infos: dict[int, DatasetInfo]
    tokenizer: Tokenizer

    @property
    def special(self) -> SpecialIds:
        """Return the ids that masking must know."""
        return self.tokenizer.special_ids

    @property
    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of vocabulary and data, by what messages call them."""
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
) -> OpenData:
    """Open data set and vocabulary on every host; what does not exist yet is made on host 0 alone.

    Raises:
      UserError: for anything the user can fix; where hosts see other data, naming the host.
    """
    with hosts.main_first("data set"):
        infos = open_datasets(
            config, workdir=workdir, max_seq_lengths=max_seq_lengths, build=hosts.is_main, report=report
        )
        data = OpenData(infos, open_tokenizer(next(iter(infos.values()))))
        if hosts.is_main:
            # For export; written again, as a run that came to no checkpoint may have had another.
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
    """Return the data set of each length: that of `data.directory`, or one built from `data.input` in WORKDIR/data.

    Without `build` it is built already, by another host.

    Raises:
      UserError: if there is nothing to train on, or config and data set disagree; the line names both sides.
    """
    data = config.data
    if data.directory:
        directory = Path(data.directory)
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
                report=report,
            )
    else:
        raise UserError(
            "config.data: there is nothing to train on: give --config.data.directory=DIR with a data set made by "
            "`python -m "
            "bert_jax.prepare --input='GLOB' --out=DIR`, or --config.data.input='GLOB' to have it built in the workdir"
        )
    infos = {length: load_dataset_info(directory, max_seq_length=length) for length in max_seq_lengths}
    for info in infos.values():
        _check(config, info)
    return infos


def open_tokenizer(info: DatasetInfo) -> Tokenizer:
    """Return the tokenizer that the data set was made with."""
    return load_tokenizer(info.vocab_directory)


def _check(config: Config, info: DatasetInfo) -> None:
    where = f"the data set in {info.directory}"
    tokenizer = open_tokenizer(info)
    if config.model.vocab_size < max(tokenizer.vocab_size, info.max_token_id + 1):
        needed = max(tokenizer.vocab_size, info.max_token_id + 1)
        raise UserError(
            f"config.model.vocab_size={config.model.vocab_size} is smaller than the vocabulary of {where}, which has "
            f"{needed} "
            f"pieces: set --config.model.vocab_size={needed}"
        )
    if tokenizer.fingerprint != info.vocabulary_fingerprint:
        raise UserError(
            f"{info.vocab_directory} is not the vocabulary that {where} was made with (fingerprint "
            f"{tokenizer.fingerprint[:12]} "
            f"beside {info.vocabulary_fingerprint[:12]}): put the right vocabulary back, or run prepare again"
        )
    if config.data.vocab:
        given = load_tokenizer(config.data.vocab, do_lower_case=config.data.do_lower_case)
        if given.fingerprint != info.vocabulary_fingerprint:
            raise UserError(
                f"config.data.vocab={config.data.vocab} is not the vocabulary of {where} (fingerprint "
                f"{given.fingerprint[:12]} "
                f"beside {info.vocabulary_fingerprint[:12]}): leave config.data.vocab empty to use the data set's own"
            )
    for field in ("do_lower_case", "objective"):
        mine, theirs = getattr(config.data, field), getattr(info, field)
        if mine != theirs:
            raise UserError(
                f"config.data.{field}={mine} but {where} was made with {field}={theirs}: set "
                f"--config.data.{field}={theirs}, "
                "or prepare another data set"
            )
    _check_packing(config, info, where)
    if config.recipe != info.recipe:
        raise UserError(
            f"config.recipe={config.recipe} but {where} was made with --recipe={info.recipe}: set --config.recipe="
            f"{info.recipe}, or prepare another data set"
        )


def _check_packing(config: Config, info: DatasetInfo, where: str) -> None:
    """Compare the number of instances of a row, which is a shape of the step and decides on its slots."""
    mine = instances_per_row(config.data, max_seq_length=info.max_seq_length)
    theirs = info.instances_per_row
    if mine == theirs:
        return
    if 1 in (mine, theirs):
        packed = theirs > 1
        raise UserError(
            f"config.data.pack={config.data.pack} but {where} was made {'with' if packed else 'without'} --pack: set "
            f"--config.data.pack={packed}, or prepare another data set"
        )
    raise UserError(
        f"rows of {info.max_seq_length} in {where} were packed with at most {theirs} instances, "
        f"config.data.max_instances_per_row={config.data.max_instances_per_row} means {mine}: set "
        f"--config.data.max_instances_per_row={theirs}, or prepare another data set"
    )
