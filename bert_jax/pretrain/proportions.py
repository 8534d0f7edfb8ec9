"""Whether text, vocabulary and length of a run go together: epochs of each phase, and warnings where they do not."""

from collections.abc import Mapping, Sequence

from bert_jax.config import BERT_EPOCHS, Config
from bert_jax.data.dataset_info import DatasetInfo
from bert_jax.data.documents import find_sources
from bert_jax.data.estimate import describe_estimate, rows_by_length
from bert_jax.data.inspection import read_sample
from bert_jax.training.schedule import Phase

# Data-constrained models gain little beyond BERT_EPOCHS (Muennighoff et al. 2023), but masks differ each time.
MANY_EPOCHS = 200
# A token that is seldom seen is not learned. The 30,522 of BERT had 3.3 billion words: 100,000 times each.
FEW_USES = 100
_DEAD_SHARE = 0.02  # of the vocabulary: more than what rounding up to a multiple of 128 adds


def describe_epochs(phases: Sequence[Phase], *, infos: Mapping[int, DatasetInfo]) -> list[str]:
    """Return a line per phase: its steps, in epochs of its sequences."""
    lines = []
    for index, phase in enumerate(phases):
        if phase.end > phase.start:
            rows = infos[phase.max_seq_length].num_train_rows
            lines.append(
                f"phase {index}: {phase.end - phase.start:,} steps of {phase.batch_size:,} are "
                f"{_epochs(phase, rows):,.3g} epochs of {rows:,} sequences of {phase.max_seq_length}"
            )
    return lines


def estimated_epochs(config: Config, *, phases: Sequence[Phase]) -> list[str]:
    """Return lines like `describe_epochs`, estimated from a sample of `config.data.input`, which is not built yet.

    Raises:
      UserError: if an input does not exist, or has no text.
    """
    if not config.data.input or config.data.input.startswith("tfds:"):
        return []
    data, vocab_size = config.data, config.model.vocab_size
    sources = find_sources(data.input, download=False)
    text = read_sample(sources, config=data, report=lambda _: None).size()
    lengths = sorted({phase.max_seq_length for phase in phases})
    rows = rows_by_length(text, config=data, max_seq_lengths=lengths, vocab_size=vocab_size)
    lines = [
        f"the data set is not built yet; its vocabulary gets at most {vocab_size:,} tokens",
        describe_estimate(text, config=data, max_seq_lengths=lengths, vocab_size=vocab_size),
    ]
    for index, phase in enumerate(phases):
        if phase.end > phase.start:
            number = rows[phase.max_seq_length]
            lines.append(
                f"phase {index}: {phase.end - phase.start:,} steps of {phase.batch_size:,} are about "
                f"{_epochs(phase, number):,.3g} epochs of about {number:,} sequences of {phase.max_seq_length}"
            )
    return lines + _many_epochs(sum(_epochs(phase, rows[phase.max_seq_length]) for phase in phases))


def warnings(config: Config, *, phases: Sequence[Phase], infos: Mapping[int, DatasetInfo]) -> list[str]:
    """Return a line for each proportion that wastes the run, with what to type instead."""
    info = next(iter(infos.values()))
    vocabulary, tokens = info.vocab_size, info.statistics["tokens"]["train"]
    lines = []
    dead = config.model.vocab_size - max(vocabulary, info.max_token_id + 1)
    if dead > _DEAD_SHARE * config.model.vocab_size:
        lines.append(
            f"warning: config.model.vocab_size={config.model.vocab_size}, but the vocabulary has {vocabulary} tokens: "
            f"{dead * config.model.hidden_size / 1e6:.1f} million parameters are never trained; "
            "--config.model.vocab_size=0 follows the data"
        )
    if tokens < FEW_USES * vocabulary:
        lines.append(
            f"warning: {tokens:,} tokens of text for a vocabulary of {vocabulary:,}, {tokens / vocabulary:.0f} each: "
            "rare ones will not be learned; use more text, or a smaller vocabulary (--config.model.vocab_size, "
            "prepare --vocab_size)"
        )
    epochs = sum(_epochs(phase, infos[phase.max_seq_length].num_train_rows) for phase in phases)
    return lines + _many_epochs(epochs)


def describe_unseen(
    config: Config, *, phases: Sequence[Phase], infos: Mapping[int, DatasetInfo], workdir: str
) -> list[str]:
    """Return the line for the end of a run in `workdir` that went through less than its text, with what to type."""
    epochs = sum(_epochs(phase, infos[phase.max_seq_length].num_train_rows) for phase in phases)
    if epochs >= 0.995:  # 100 %, as it is printed
        return []
    more = (
        f"continue it with --continue_from={workdir} and a larger --config.train.num_epochs"
        if config.train.num_epochs
        else "type the same command with a larger --config.train.num_steps"
    )
    return [f"the run has seen {epochs:.0%} of the text: for more steps, {more}"]


def _many_epochs(epochs: float) -> list[str]:
    if epochs <= MANY_EPOCHS:
        return []
    return [
        f"warning: the run goes through the text {epochs:,.0f} times (BERT: {BERT_EPOCHS}): it will learn the text by "
        f"heart; use more text, or --config.train.num_epochs={BERT_EPOCHS}"
    ]


def _epochs(phase: Phase, num_rows: int) -> float:
    return (phase.end - phase.start) * phase.batch_size / num_rows
