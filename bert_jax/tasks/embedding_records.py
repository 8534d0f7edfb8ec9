"""Records of text embeddings: pairs, triplets, scored pairs, texts; `config.embed` names the columns."""

import dataclasses

from bert_jax.config.task_options import DataOptions, EmbedOptions
from bert_jax.errors import UserError
from bert_jax.tasks.files import finite_number
from bert_jax.tasks.interface import find_file
from bert_jax.tasks.own_labels import listed
from bert_jax.tasks.own_records import Record, read_records, records_of


@dataclasses.dataclass(frozen=True)
class EmbedExample:
    """A first text ("" for a document of a corpus), the text that belongs to it, and hard negatives; or a score."""

    texts: tuple[str, ...]
    score: float | None = None


def read_examples(data: DataOptions, *, embed: EmbedOptions, split: str) -> list[EmbedExample]:
    """Return the examples of a split. Those of train have the form in the config; of other splits, that of the file.

    Raises:
      UserError: if a column is missing, or a text is empty.
    """
    single = embed.anchor if embed.form == "texts" and split == "train" else ""
    return [
        _example(record, embed=embed, is_train=split == "train")
        for record in read_records(data, split=split, texts=single)
    ]


def read_documents(data: DataOptions, *, embed: EmbedOptions) -> list[EmbedExample]:
    """Return the documents of `corpus_file`, each as an example without a first text."""
    path = find_file(data.directory or ".", file=embed.corpus_file, names=[])
    records = records_of(path, texts=embed.positive)
    return [EmbedExample(("", _text(record, embed.positive, option="positive"))) for record in records]


def _example(record: Record, *, embed: EmbedOptions, is_train: bool) -> EmbedExample:
    anchor = _text(record, embed.anchor, option="anchor")
    if is_train and embed.form == "texts":
        return EmbedExample((anchor, anchor))
    pair = anchor, _text(record, embed.positive, option="positive")
    if (is_train and embed.form == "scores") or (not is_train and embed.score in record.fields):
        value = record.field(embed.score, option="score", group="embed")
        return EmbedExample(pair, finite_number(value, location=record.location, name=embed.score))
    if not is_train or embed.form == "pairs":
        return EmbedExample((*pair, *(_negatives(record, embed=embed) if not is_train else ())))
    negatives = _negatives(record, embed=embed)
    if not negatives:
        raise UserError(
            f"{record.location}: no negative in column {embed.negatives!r} (config.embed.negatives): give one, or type "
            "--config=configs/finetune_embed.py:pairs"
        )
    return EmbedExample((*pair, *negatives))


def _negatives(record: Record, *, embed: EmbedOptions) -> tuple[str, ...]:
    """Return the hard negatives of a record: those of a list, or of several columns; empty ones are left out."""
    texts: list[str] = []
    for name in listed(embed.negatives):
        value = record.fields.get(name)
        if isinstance(value, str) and record.of_table:
            value = record.listed(value, name=name) or value
        values = value if isinstance(value, list) else [] if value is None else [value]
        texts += [record.as_text(item, name=name).strip() for item in values]
    return tuple(text for text in texts if text)


def _text(record: Record, name: str, *, option: str) -> str:
    text = record.text(name, option=option, group="embed").strip()
    if not text:
        raise UserError(f"{record.location}: column {name!r} is empty: give the record a text, or remove it")
    return text
