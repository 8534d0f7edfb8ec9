"""Build a pre-training data set from text: read, learn a vocabulary, write shards and metadata. Each step resumes."""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bert_jax.config import CHOICES, MIN_SEQ_LENGTH, DataConfig, check_packing, instances_per_row
from bert_jax.data.accents import strips_accents, with_accents
from bert_jax.data.dataset_info import (
    DatasetInfo,
    ShardFile,
    finished_lengths,
    is_finished,
    load_dataset_info,
    write_dataset_info,
)
from bert_jax.data.documents import find_sources
from bert_jax.data.embedded_corpus import EMBEDDED
from bert_jax.data.estimate import TextSize, check_disk_space, describe_estimate, estimate_text
from bert_jax.data.inspection import Sample, inspect_corpus, layout_of, num_left_out, read_sample
from bert_jax.data.intermediate import ChunkSpec, make_chunks, write_chunk
from bert_jax.data.losses import check, measure
from bert_jax.data.manifest import another, check_manifest, make_manifest
from bert_jax.data.output_folder import (
    Refused,
    check_folder,
    check_writable,
    discarding,
    exclusive,
    system_errors,
)
from bert_jax.data.records import row_spec
from bert_jax.data.shards import ShardSpec, dataset_directory, read_result, shard_name, write_shard
from bert_jax.data.source import TextSource
from bert_jax.data.statistics import ShardCounts, describe, sampling_threshold, summarize
from bert_jax.data.survey import SHARD_BYTES, Survey, part_size, survey
from bert_jax.data.tfds_builders import NotPrepared
from bert_jax.data.tokenization import Tokenizer, load_tokenizer
from bert_jax.data.vocabulary import DEFAULT_VOCAB_SIZE, VOCABULARY_BYTES, learn_vocabulary, save_vocabulary
from bert_jax.data.workers import default_num_workers, run_beam, run_local
from bert_jax.errors import UserError
from bert_jax.files import SUFFIX, new_folder, write_json
from bert_jax.locations import local_path
from bert_jax.progress import ByteProgress

RUNNERS = ("local", "beam")
_MUCH_PADDING = 0.02  # fraction of the positions of packed sequences
_ACCENT_BYTES = 1 << 20  # of text that shows whether accents are vowels or tones


def build_dataset(
    config: DataConfig,
    *,
    out: str | Path,
    max_seq_lengths: Sequence[int],
    vocab_size: int,
    recipe: str = "modern",
    runner: str = "local",
    beam_arguments: Sequence[str] = (),
    leave_out: Sequence[Path] = (),
    flag: str = "--out",
    report: Callable[[str], None] = print,
) -> DatasetInfo:
    """Build the data set of every length of `max_seq_lengths` in `out` and return the facts of the first one.

    Finished work is kept: a second call does nothing, a call after a crash resumes, a call with another length adds it.
    `vocab_size` is the size of the vocabulary to learn (0: 30522), or the maximum size of an existing one (0: any).
    `out` and the folders `leave_out` are not read, even if they are inside an input folder. `flag` is what chooses
    `out` on the command line: `--workdir` for a run that builds its data set.

    Raises:
      UserError: for wrong settings; no text; `out` built from other text or with other settings; a full disk; missing
        permissions.
    """
    out = local_path(out, name="--out", expand=True).absolute()
    max_seq_lengths = tuple(dict.fromkeys(max_seq_lengths))
    _check_settings(config, max_seq_lengths, recipe, runner)
    is_new = not out.exists()
    check_folder(out)
    missing = [length for length in max_seq_lengths if not is_finished(out, max_seq_length=length)]
    try:
        sources = _find_sources(config.input, out=out, leave_out=leave_out, complete=not missing)
    except NotPrepared:  # the text of a finished data set is not downloaded again, only to compare its size
        report(f"data set in {out} is complete; {config.input} is not here to compare with")
        return load_dataset_info(out, max_seq_length=max_seq_lengths[0])
    tokenizer = load_given_vocabulary(config, vocab_size=vocab_size) if config.vocab else None
    vocab_size = vocab_size or DEFAULT_VOCAB_SIZE
    with system_errors(out):
        manifest = make_manifest(config, sources=sources, tokenizer=tokenizer, vocab_size=vocab_size, recipe=recipe)
        check_manifest(out, manifest, flag=flag, is_finished=not missing)
        if not missing:
            report(f"data set in {out} is complete, nothing to do")
            shutil.rmtree(out / "work", ignore_errors=True)  # left by a build that was killed at its very end
            return load_dataset_info(out, max_seq_length=max_seq_lengths[0])
        check_writable(out)
        sample = read_sample(sources, config=config, report=report)
        size, shown_size = sample.size(), tokenizer.vocab_size if tokenizer else vocab_size
        report(describe_estimate(size, config=config, max_seq_lengths=missing, vocab_size=shown_size))
        check_disk_space(out, text=size, config=config, max_seq_lengths=missing, vocab_size=shown_size)
        # A build that resumes, or adds a length, has shown its documents.
        inspect_corpus(sample, config=config, report=report, shows_documents=not (out / "manifest.json").exists())
        out.mkdir(parents=True, exist_ok=True)
        with exclusive(out):
            for leftover in out.glob(f".manifest.json.*{SUFFIX}"):  # of killed builds
                leftover.unlink(missing_ok=True)
            write_json(out / "manifest.json", manifest)
            run = _runner(runner, config.num_workers, beam_arguments)
            with discarding(out, is_new=is_new):
                _Build(out, flag, config, recipe, report, run).build(sources, missing, tokenizer, vocab_size, sample)
    return load_dataset_info(out, max_seq_length=max_seq_lengths[0])


def describe_inputs(
    config: DataConfig,
    *,
    out: str,
    max_seq_lengths: Sequence[int],
    vocab_size: int = 0,
    report: Callable[[str], None] = print,
) -> None:
    """Report what `build_dataset` would read, without writing anything; the folder `out` is not read.

    Raises:
      UserError: as `build_dataset`, as far as a sample of the text shows.
    """
    check_packing(config)
    sources = find_sources(config.input, leave_out=[Path(out).expanduser()] if out else [], download=False)
    sample = read_sample(sources, config=config, report=report)
    if config.vocab:
        vocab_size = load_given_vocabulary(config, vocab_size=vocab_size).vocab_size
    vocab_size = vocab_size or DEFAULT_VOCAB_SIZE
    report(describe_estimate(sample.size(), config=config, max_seq_lengths=max_seq_lengths, vocab_size=vocab_size))
    for warning in inspect_corpus(sample, config=config, report=report):
        report(f"warning: {warning}")
    report("dry run: nothing was written")


def _find_sources(inputs: str, *, out: Path, leave_out: Sequence[Path], complete: bool) -> list[TextSource]:
    try:
        return find_sources(inputs, leave_out=[out, *leave_out], download=not complete)
    except NotPrepared:
        raise
    except UserError as error:
        if complete:
            raise UserError(
                f"{error}; the data set in {out} is complete: to use it without the text, type "
                f"--config.data.directory={out}"
            ) from None
        raise


def load_given_vocabulary(config: DataConfig, *, vocab_size: int) -> Tokenizer:
    """Load `config.vocab` and check it against `config.do_lower_case` and, unless 0, the model's `vocab_size`.

    Raises:
      UserError: if they are inconsistent.
    """
    tokenizer = load_tokenizer(config.vocab)
    if tokenizer.do_lower_case and not config.do_lower_case:
        tokenizer = load_tokenizer(
            config.vocab, do_lower_case=False
        )  # a vocabulary without capitals may still be cased
    elif config.do_lower_case and not tokenizer.do_lower_case:
        raise UserError(
            f"vocabulary {config.vocab} is cased and do_lower_case is True: set config.data.do_lower_case=False "
            "(prepare --nodo_lower_case), or give an uncased vocabulary"
        )
    if vocab_size and tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"vocabulary {config.vocab} has {tokenizer.vocab_size} tokens, more than vocab_size={vocab_size}: "
            f"set config.model.vocab_size={tokenizer.vocab_size} (prepare --vocab_size={tokenizer.vocab_size})"
        )
    return with_accents(tokenizer, config.strip_accents)


Run = Callable[..., None]


def _runner(runner: str, num_workers: int, beam_arguments: Sequence[str]) -> Run:
    if runner == "beam":
        return lambda task, items, *, advance: run_beam(task, items, arguments=beam_arguments)
    return functools.partial(run_local, num_workers=num_workers or default_num_workers())


@dataclasses.dataclass(frozen=True)
class _Build:
    """One build: settings and output shared by its steps."""

    out: Path
    flag: str
    config: DataConfig
    recipe: str
    report: Callable[[str], None]
    run: Run

    def build(
        self,
        sources: list[TextSource],
        lengths: list[int],
        existing: Tokenizer | None,
        vocab_size: int,
        sample: Sample,
    ) -> None:
        work = self.out / "work"
        corpus = self._read_text(work / "intermediate", sources, estimate_text(sources))
        if num_left_out(corpus.report) > num_left_out(sample.report):  # those of the sample are named already
            self.report(f"left out: {num_left_out(corpus.report):,} files of all")
        if not sample.is_complete or corpus.report.warnings() != sample.report.warnings():  # else they are said
            for warning in corpus.report.warnings():
                self.report(f"warning: {warning}")
        try:
            tokenizer = self._vocabulary(corpus, existing, vocab_size)
            losses = measure(corpus.training_documents(), tokenizer=tokenizer, language=self.config.language)
            self.report(losses.describe())
            # No one can change the documents of the embedded corpus.
            objective = "mlm" if self.config.input == EMBEDDED else self.config.objective
            for warning in check(losses, objective=objective, is_learned=existing is None):
                self.report(warning)
        except UserError as error:
            raise Refused(str(error)) from error
        check_disk_space(
            self.out,
            text=TextSize(corpus.text_bytes, corpus.num_documents),
            config=self.config,
            max_seq_lengths=lengths,
            vocab_size=tokenizer.vocab_size,
        )
        plan = ShardSpec(
            out=str(self.out),
            results=str(work / "results"),
            vocab_directory=str(self.out / "vocab"),
            intermediate=corpus.intermediate,
            max_seq_lengths=tuple(lengths),
            objective=self.config.objective,
            recipe=self.recipe,
            short_seq_prob=self.config.short_seq_prob,
            seed=self.config.seed,
            language=self.config.language,
            paragraphs_below=sampling_threshold(corpus.num_paragraphs),
            instances_per_row=tuple(instances_per_row(self.config, max_seq_length=length) for length in lengths),
            max_instance_length=self.config.max_instance_length,
        )
        Path(plan.results).mkdir(exist_ok=True)
        progress = ByteProgress("instances", total=corpus.text_bytes, report=self.report)
        # Largest first: no worker starts on a large shard when the others are about to finish.
        shards = sorted(corpus.shards, key=lambda shard: -shard.text_bytes)
        self.run(functools.partial(write_shard, plan=plan), shards, advance=progress.advance)
        progress.finish()
        self._finish(plan, corpus, tokenizer)
        shutil.rmtree(work)

    def _read_text(self, directory: Path, sources: list[TextSource], text_bytes: int) -> Survey:
        spec = ChunkSpec(str(directory), layout_of(self.config), self.config.language, self.config.seed)
        progress = ByteProgress("reading text", total=text_bytes, report=self.report)
        chunks = make_chunks(sources)
        self.run(functools.partial(write_chunk, spec=spec), chunks, advance=progress.advance)
        progress.finish()
        corpus = survey(directory, chunks=chunks, config=self.config)
        if size := part_size(corpus, config=self.config):
            spec = dataclasses.replace(spec, directory=f"{directory}_parts", max_part=size)
            self.run(functools.partial(write_chunk, spec=spec), chunks, advance=lambda _: None)
            corpus = survey(Path(spec.directory), chunks=chunks, config=self.config, by_part=True)
            self.report("the text is one document: a part of it is held out")
        return corpus

    def _vocabulary(self, corpus: Survey, existing: Tokenizer | None, vocab_size: int) -> Tokenizer:
        directory = self.out / "vocab"
        if directory.exists():
            return load_tokenizer(directory)
        for leftover in directory.parent.glob(f"*vocab*{SUFFIX}"):  # of killed builds
            shutil.rmtree(leftover, ignore_errors=True)
        with new_folder(directory) as partial:
            if existing is not None:
                existing.save(partial)
            else:
                strip, marks = strips_accents(
                    self.config.strip_accents,
                    do_lower_case=self.config.do_lower_case,
                    texts=corpus.training_texts(_ACCENT_BYTES),
                )
                if marks and strip is False:
                    self.report(
                        f"accents are kept: stripping would delete {marks:.1%} of the characters, vowels and tones of "
                        "these scripts (config.data.strip_accents=yes strips them)"
                    )
                self.report(f"learning a vocabulary of {vocab_size} tokens")
                learned = learn_vocabulary(
                    corpus.training_texts(VOCABULARY_BYTES),
                    vocab_size=vocab_size,
                    do_lower_case=self.config.do_lower_case,
                    strip_accents=strip,
                )
                save_vocabulary(learned, directory=partial)
        return load_tokenizer(directory)

    def _finish(self, plan: ShardSpec, corpus: Survey, tokenizer: Tokenizer) -> None:
        results = [(shard, read_result(plan, shard)) for shard in corpus.shards]
        counts: dict[str, list[ShardCounts]] = {"train": [], "validation": []}
        for shard, result in results:
            if result is None:
                raise UserError(f"shard {shard_name(shard)} is missing from {self.out}: run the same command again")
            counts[shard.split].append(result)
        every = [*counts["train"], *counts["validation"]]
        fingerprint = _data_fingerprint(self.config, plan, corpus, tokenizer)
        for length in finished_lengths(self.out):
            if load_dataset_info(self.out, max_seq_length=length).data_fingerprint != fingerprint:
                raise UserError(
                    f"the text differs from that of the data set of length {length} in {self.out}: "
                    + another(self.flag, instead="delete that folder")
                )
        for length in plan.max_seq_lengths:
            statistics = summarize(counts, max_seq_length=length, num_paragraphs=corpus.num_paragraphs)
            if not statistics["rows"]["train"]:
                raise UserError(f"the input '{self.config.input}' yields no instance: its documents are too short")
            per_row = instances_per_row(self.config, max_seq_length=length)
            spec = row_spec(length, vocab_size=tokenizer.vocab_size, instances_per_row=per_row)
            files = {
                split: tuple(
                    ShardFile(shard_name(shard), result.lengths[length].num_rows, result.lengths[length].file_bytes)
                    for shard, result in results
                    if result is not None and shard.split == split
                )
                for split in counts
            }
            info = DatasetInfo(
                directory=self.out,
                vocab_directory=self.out / "vocab",
                vocab_size=tokenizer.vocab_size,
                vocabulary_fingerprint=tokenizer.fingerprint,
                do_lower_case=tokenizer.do_lower_case,
                objective=self.config.objective,
                recipe=self.recipe,
                max_seq_length=length,
                instances_per_row=spec.instances_per_row,
                max_token_id=max(shard.max_token_id for shard in every),
                data_fingerprint=fingerprint,
                row_spec=spec,
                shards=files,
                statistics=statistics,
            )
            for partial in dataset_directory(self.out, max_seq_length=length).glob(f"*.array_record*{SUFFIX}"):
                partial.unlink()
            write_dataset_info(info)
            lines = describe(statistics, objective=self.config.objective, max_seq_length=length)
            for line in (
                lines if length == plan.max_seq_lengths[0] else lines[-1:]
            ):  # the other lines do not depend on the length
                self.report(line)
            if statistics["padding_share"] > _MUCH_PADDING and info.mean_instances > 0.8 * per_row > 1:
                self.report(
                    f"sequences of {length} have {statistics['padding_share']:.0%} padding because most are limited by "
                    f"max_instances_per_row={per_row}: raise it"
                )


def _data_fingerprint(config: DataConfig, plan: ShardSpec, corpus: Survey, tokenizer: Tokenizer) -> str:
    parts: list[Any] = [corpus.text_digest, corpus.intermediate.heldout_below, tokenizer.fingerprint, SHARD_BYTES]
    parts += [plan.objective, plan.recipe, plan.short_seq_prob, plan.seed, plan.language]
    if plan.recipe == "original":  # until 0.2.0 a segment's first token always began a word
        parts.append("segments begin within words")
    if config.pack:  # data sets built before packing existed keep their fingerprint
        parts += [config.max_instances_per_row, config.max_instance_length]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _check_settings(config: DataConfig, max_seq_lengths: Sequence[int], recipe: str, runner: str) -> None:
    if recipe not in CHOICES["recipe"]:
        raise UserError(f"recipe={recipe!r}: choose one of {', '.join(CHOICES['recipe'])}")
    if runner not in RUNNERS:
        raise UserError(f"runner={runner!r}: choose one of {', '.join(RUNNERS)}")
    if not max_seq_lengths:
        raise UserError("max_seq_length is empty: give at least one length, for example 128")
    for length in max_seq_lengths:
        if not MIN_SEQ_LENGTH <= length <= 65535:
            raise UserError(f"max_seq_length={length}: must be between {MIN_SEQ_LENGTH} and 65535")
    check_packing(config)
