"""Where the text of pre-training comes from, and how rows are made of it."""

import dataclasses

from bert_jax.config.builder import check_fields
from bert_jax.config.fields import field
from bert_jax.errors import UserError

MIN_SEQ_LENGTH = 8  # [CLS] A [SEP] B [SEP] with two tokens a side and one to spare


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where text, vocabulary and data set come from, and how instances are made."""

    directory: str = field("", doc="A data set made by prepare; empty: built from `input` in WORKDIR/data.")
    input: str = field(
        "", doc='Files, globs, "tfds:NAME" or "embedded" (the documentation inside the installed Python).'
    )
    format: str = field(
        "auto", choices=("auto", "prose", "sentences", "jsonl", "wikiextractor"), doc="Format of the text."
    )
    language: str = field("en", doc="ISO 639-1 code, for sentence splitting.")
    vocab: str = field(
        "", doc="vocab.txt, a folder that holds one, or a SentencePiece .model; empty: learned from `input`."
    )
    do_lower_case: bool = field(True, doc="Casing of a learned vocabulary; a given one is checked against it.")
    objective: str = field("mlm+nsp", choices=("mlm", "mlm+nsp", "mlm+sop"), doc="What the rows train.")
    short_seq_prob: float = field(0.1, at_least=0, at_most=1, doc="Fraction of instances made shorter than the row.")
    pack: bool = field(False, doc="Sequence packing: several instances per row, none of which sees another.")
    max_instances_per_row: int = field(
        0, at_least=0, unit="instances", doc="Bound of packed rows; 0: max_seq_length / 32, at least 4."
    )
    max_instance_length: int = field(
        0, at_least=0, unit="tokens", doc="Bound of instances in packed rows; 0: as long as a row."
    )
    heldout_fraction: float = field(0.01, at_least=0, below=0.9, doc="Fraction of the documents held out.")
    num_workers: int = field(0, at_least=0, unit="processes", doc="Processes that make the data set; 0: one per core.")
    # the default of the original (create_pretraining_data.py)
    seed: int = field(12345, at_least=0, doc="Seed of the data set, which serves every training seed.")


def instances_per_row(data: DataConfig, *, max_seq_length: int) -> int:
    """Return S, the most instances that a row of `max_seq_length` holds.

    The default lets rows be full wherever instances are 32 tokens long on average; at 512 English prose needs 4 to 6.
    """
    if not data.pack:
        return 1
    return data.max_instances_per_row or max(4, max_seq_length // 32)


def check_packing(data: DataConfig) -> None:
    """Check every value, and the fields about packing against each other.

    Raises:
      UserError: naming the field and what to type.
    """
    check_fields(data, path="data")
    for name in ("max_instances_per_row", "max_instance_length"):
        value = getattr(data, name)
        if value and not data.pack:
            raise UserError(
                f"data.{name}={value} is about packed rows: set data.pack=True (prepare --pack), or leave it 0"
            )
    if data.max_instances_per_row == 1:
        raise UserError("data.max_instances_per_row=1 packs nothing: set at least 2, or 0 for the default")
    if 0 < data.max_instance_length < MIN_SEQ_LENGTH:
        raise UserError(f"data.max_instance_length={data.max_instance_length}: must be at least {MIN_SEQ_LENGTH}, or 0")
