"""Config of the pre-training data: where the text comes from and how sequences are built from it."""

import dataclasses
import re

from bert_jax.config.builder import check_fields
from bert_jax.config.fields import MAX_SEED, field
from bert_jax.errors import UserError, closest

MIN_SEQ_LENGTH = 8  # [CLS] A [SEP] B [SEP] with two tokens per segment and one spare


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Text, vocabulary, data set, and how instances are built."""

    directory: str = field(
        "",
        doc="Data set made by prepare, a folder or gs://BUCKET/FOLDER; empty: built from `input` in WORKDIR/data.",
        in_bucket=True,
    )
    input: str = field(
        "", doc='Files, globs, "tfds:NAME" or "embedded" (the documentation inside the installed Python).'
    )
    format: str = field(
        "auto",
        choices=("auto", "prose", "sentences", "jsonl", "wikiextractor", "json", "csv", "tsv", "parquet", "arrow"),
        doc="Format of the text; auto: detected, file by file.",
    )
    text_column: str = field(
        "text",
        doc="Column of the text in CSV, TSV, parquet and arrow files: its name, or in CSV and TSV without a header its "
        "number from 1; of several, separated by commas, the first that a file has.",
    )
    text_key: str = field(
        "text",
        doc="Key of the text in JSON files; dots lead into nested objects, as in meta.body; of several, separated by "
        "commas, the first that has a text.",
    )
    documents: str = field(
        "",
        doc="A document of plain text: lines (each line), blank_lines (what is between blank lines), or a separator "
        'such as <|endoftext|>; "": what the format says.',
    )
    language: str = field("en", doc="ISO 639-1 language code, for sentence splitting.")
    vocab: str = field(
        "", doc="vocab.txt, a folder that contains one, or a SentencePiece .model; empty: learned from `input`."
    )
    do_lower_case: bool = field(True, doc="Lower-case the text; an existing vocabulary must agree.")
    strip_accents: str = field(
        "auto",
        choices=("auto", "yes", "no"),
        doc="Remove accents and other non-spacing marks; auto: as the vocabulary says, and for a new one as "
        "do_lower_case, except in scripts whose vowels or tones are such marks (Thai, Hindi, ...).",
    )
    objective: str = field("mlm+nsp", choices=("mlm", "mlm+nsp", "mlm+sop"), doc="Pre-training objective.")
    short_seq_prob: float = field(
        0.1, at_least=0, at_most=1, doc="Fraction of instances made shorter than the maximum length."
    )
    pack: bool = field(
        False, doc="Sequence packing: several instances per sequence; attention stays within each instance."
    )
    max_instances_per_row: int = field(
        0, at_least=0, unit="instances", doc="Most instances in a packed sequence; 0: max_seq_length / 32, at least 4."
    )
    max_instance_length: int = field(
        0, at_least=0, unit="tokens", doc="Longest instance in a packed sequence; 0: max_seq_length."
    )
    heldout_fraction: float = field(
        0.01, at_least=0, below=0.9, doc="Fraction of the documents held out for evaluation."
    )
    num_workers: int = field(0, at_least=0, unit="processes", doc="Processes that build the data set; 0: one per core.")
    # 12345: the default of the original's create_pretraining_data.py
    seed: int = field(
        12345, at_least=0, at_most=MAX_SEED, doc="Seed of the data set; one data set serves every training seed."
    )


_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]+)*")
# ISO 639-1, with the codes that were withdrawn and are still in use.
_TWO_LETTERS = (
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en "
    "eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik in io is it iu iw "
    "ja ji jv jw ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mo mr ms mt "
    "my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm "
    "sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)


def _check_language(value: str) -> None:
    """Check that a language exists, as far as its code shows: with rules for another, sentences are split wrongly."""
    code = value.partition("-")[0]
    if not _LANGUAGE.fullmatch(value) or (len(code) == 2 and code not in _TWO_LETTERS.split()):
        raise UserError(
            f"data.language={value!r:.40} is not a language code: write one of ISO 639-1, in small letters, such as "
            "en, de or zh"
        )


_DOCUMENTS = ("lines", "blank_lines")


def _check_documents(value: str) -> None:
    advice = "type lines (each line is a document), blank_lines, or a separator such as '<|endoftext|>'"
    if value != value.strip() or "\n" in value or "\\n" in value:
        raise UserError(f"data.documents={value!r} is white space or contains it at an end: {advice}")
    close = closest(value, _DOCUMENTS, n=1, cutoff=0.7)
    if value not in _DOCUMENTS and close:
        raise UserError(f"data.documents='{value}': did you mean {close[0]}? {advice}")


def instances_per_row(data: DataConfig, *, max_seq_length: int) -> int:
    """Return S, the most instances that a sequence of `max_seq_length` tokens can hold.

    The default fills sequences whose instances average 32 tokens; English prose at 512 needs 4 to 6.
    """
    if not data.pack:
        return 1
    return data.max_instances_per_row or max(4, max_seq_length // 32)


def check_packing(data: DataConfig) -> None:
    """Check every value, and the packing fields against each other.

    Raises:
      UserError: naming the field and what to type.
    """
    check_fields(data, path="data")
    _check_language(data.language)
    _check_documents(data.documents)
    for name in ("max_instances_per_row", "max_instance_length"):
        value = getattr(data, name)
        if value and not data.pack:
            raise UserError(
                f"data.{name}={value} applies to packed sequences only: set data.pack=True (prepare --pack), or "
                "set it to 0"
            )
    if data.max_instances_per_row == 1:
        raise UserError("data.max_instances_per_row=1 packs nothing: set at least 2, or 0 for the default")
    if 0 < data.max_instance_length < MIN_SEQ_LENGTH:
        raise UserError(f"data.max_instance_length={data.max_instance_length}: must be at least {MIN_SEQ_LENGTH}, or 0")
