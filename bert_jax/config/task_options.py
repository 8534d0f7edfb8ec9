"""Options of a task's data, and which tasks read which options; part of the fine-tuning config."""

import dataclasses
from collections.abc import Mapping, Sequence

from bert_jax.config.data import MIN_SEQ_LENGTH
from bert_jax.config.fields import MAX_SEED, field

# The rows of Table 7 (paper section 5.3).
FEATURES = ("embeddings", "second_to_last", "last", "sum_last_four", "concat_last_four", "sum_all")

# What is read of a text that is longer than max_seq_length.
WINDOWS = "windows"
TRUNCATIONS = ("head", "head_tail", WINDOWS)

HOLD_OUT = "--config.data.dev_fraction=0.1"  # what messages say to type without a dev file

# What a record of the train set of an embedder is.
EMBED_FORMS = ("pairs", "triplets", "scores", "texts")
RERANK_LOSSES = ("margin_mse", "kl")

# The fields of a prediction task's row, in the order in which a person writes them.
TYPED_FIELDS = {
    "fill_mask": ("text",),
    "features": ("text",),
    "embed": ("text",),
    "classify": ("text",),
    "tag": ("text",),
    "nsp": ("text_a", "text_b"),
    "pair": ("text_a", "text_b"),
    "answer": ("question", "context"),
}


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """The files of a task, and how much of them is used."""

    directory: str = field("", doc="Folder with the official files or your own, one file, or tfds:NAME for GLUE.")
    train_file: str = field("", doc="Training file, relative to the directory or absolute; empty: the official name.")
    dev_file: str = field("", doc="Dev file; like train_file.")
    test_file: str = field("", doc="Test file; like train_file.")
    dev_fraction: float = field(
        0.0,
        at_least=0,
        below=1,
        doc="Fraction of train held out as dev, by row, article or document; required without a dev file.",
    )
    dev_split: str = field(
        "dev", choices=("dev", "test"), doc="Split for model selection; test is for data sets without a dev file."
    )
    selection: str = field(
        "", doc="Metric that selects the best evaluation and run, for example macro_f1; empty: the task's own."
    )
    max_seq_length: int = field(128, at_least=MIN_SEQ_LENGTH, unit="tokens", doc="Maximum length of an instance.")
    truncation: str = field(
        "head",
        choices=TRUNCATIONS,
        doc="What is read of a longer text: its head, its head and tail, or windows, whose outputs are averaged.",
    )
    max_train_examples: int = field(
        0, at_least=0, unit="examples", doc="Training examples to sample with `seed`; 0: all."
    )
    max_eval_examples: int = field(
        0, at_least=0, unit="examples", doc="Dev examples to sample with `seed`; 0: all. Test sets are always whole."
    )
    seed: int = field(0, at_least=0, at_most=MAX_SEED, doc="Seed for holding out and sampling examples.")


@dataclasses.dataclass(frozen=True)
class SquadOptions:
    """Options of the original's run_squad.py."""

    doc_stride: int = field(128, above=0, unit="tokens", doc="Stride between windows of a context.")
    max_query_length: int = field(
        64, above=0, unit="tokens", doc="Maximum length of a question; longer ones are truncated."
    )
    n_best_size: int = field(20, above=0, unit="answers", doc="Candidate answers per question.")
    max_answer_length: int = field(30, above=0, unit="tokens", doc="Maximum length of an answer.")
    null_score_threshold: str = field(
        "tune", doc='Threshold of the no-answer score: a number, or "tune" to choose it on dev.'
    )
    skip_bad_answers: bool = field(
        False, doc="Skip training questions whose answer is not in the context, instead of raising an error."
    )
    intermediate_file: str = field("", doc="Data set in the same format to train on first (the paper's TriviaQA step).")
    intermediate_epochs: int = field(1, above=0, unit="epochs", doc="Epochs on intermediate_file.")


@dataclasses.dataclass(frozen=True)
class NerOptions:
    """How CoNLL columns are read and how sentences are combined into instances."""

    word_column: int = field(0, doc="Index of the column of the words; negative: counted from the end.")
    tag_column: int = field(-1, doc="Index of the tag column; negative: counted from the end.")
    document_context: bool = field(
        True, doc='Use the paper\'s "maximal document context"; false: one sentence per instance.'
    )
    features: str = field(
        "", choices=("", *FEATURES), doc="Feature-based approach, named by a row of Table 7; empty: fine-tuning."
    )
    bilstm_hidden_size: int = field(768, above=0, doc="Hidden size of the feature-based tagger.")
    bilstm_layers: int = field(2, above=0, unit="layers", doc="Layers of the feature-based tagger.")


@dataclasses.dataclass(frozen=True)
class OwnOptions:
    """Columns of custom data: JSON lines or a JSON array, or a CSV or TSV file with a header line."""

    kind: str = field(
        "classification", doc="Type of task: classification, regression, tags, span, choice or multilabel."
    )
    text: str = field(
        "text",
        doc="Column of the text (span: the question; choice: the beginning; tags: the words).",
    )
    text_pair: str = field("", doc="Column of the second text (span: the context); empty: single sentences.")
    label: str = field(
        "label",
        doc="Column of the label (span: the answer's text; tags: one tag per word, or entities as character spans; "
        "multilabel: a list, or several columns of 0 and 1 separated by commas).",
    )
    label_separator: str = field(
        "", doc="For multilabel: what separates labels in one text; empty: a comma in tables, and JSON holds lists."
    )
    class_weights: str = field(
        "",
        doc="For classification: weights of the labels in the loss: numbers in the order of the ids, separated by "
        "commas, or balanced (in inverse proportion to their frequency in train); empty: all weigh the same.",
    )
    choices: str = field("", doc="For choice: one column that holds a list, or several columns separated by commas.")
    answer_start: str = field(
        "answer_start",
        doc="For span: column of the answer's character offset; without it the first occurrence is used.",
    )
    labels: str = field(
        "",
        doc="All labels in the order of their ids, separated by commas; empty: the labels of train, sorted (as numbers "
        "if all are numbers). For tags that are numbers: their names.",
    )


@dataclasses.dataclass(frozen=True)
class EmbedOptions:
    """Columns of the texts to embed, and the contrastive loss."""

    form: str = field(
        "pairs",
        choices=EMBED_FORMS,
        doc="What a record of train is: a pair, a pair with hard negatives (triplets), a pair with a score, or a text "
        "(texts: SimCSE).",
    )
    anchor: str = field("anchor", doc="Column of the first text of a pair, or of the text.")
    positive: str = field("positive", doc="Column of the second text of a pair.")
    negatives: str = field(
        "negative", doc="For triplets: column of a hard negative or of a list of them, or columns separated by commas."
    )
    score: str = field("score", doc="For scores: column of the similarity of a pair, a number of any range.")
    anchor_prompt: str = field("", doc='Prompt put before the first text, for example "query: ".')
    positive_prompt: str = field("", doc='Prompt put before all other texts, for example "passage: ".')
    pooling: str = field(
        "", choices=("", "mean", "cls"), doc="Pooling of the last layer; empty: that of the model, else mean."
    )
    similarity: str = field("cosine", choices=("cosine", "dot"), doc="Similarity of two embeddings.")
    temperature: float = field(0.05, above=0, doc="Divisor of the similarities in the loss.")
    symmetric: bool = field(
        False, doc="For pairs, triplets and texts: also choose the first text given the second, with half of the loss."
    )
    dimensions: tuple[int, ...] = field(
        (),
        above=0,
        doc="Matryoshka: sizes to which embeddings may be truncated; each adds a loss to that of the whole.",
    )
    corpus_file: str = field(
        "", doc="Further documents for the evaluation of retrieval; column positive, or a text per line."
    )


@dataclasses.dataclass(frozen=True)
class RerankOptions:
    """Columns of queries with scored documents, and the loss of a reranker."""

    query: str = field("query", doc="Column of the query.")
    documents: str = field(
        "documents", doc="Column of a list of documents, or several columns of one document, separated by commas."
    )
    scores: str = field(
        "scores", doc="Column of the list of their scores by a teacher, or a column per document, separated by commas."
    )
    loss: str = field(
        "margin_mse",
        choices=RERANK_LOSSES,
        doc="margin_mse: squared error of the margins between the first document and each other; kl: divergence from "
        "the teacher's softmax over the documents.",
    )
    temperature: float = field(1.0, above=0, doc="For kl: divisor of the scores in both softmaxes.")


# Each task, with the groups of options that it reads.
TASKS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"), ()),
    **dict.fromkeys(("squad_v1", "squad_v2"), ("squad",)),
    "swag": (),
    "ner": ("ner",),
    "own": ("own",),
    "embed": ("embed",),
    "rerank": ("rerank",),
}
# Custom data of these kinds also reads a benchmark's options.
GROUP_OF_KIND = {"span": "squad", "tags": "ner"}


def option_groups(tasks: Sequence[str], *, own_kinds: Sequence[str]) -> list[str]:
    """Return the names of the groups that `tasks` read, for custom data of the kinds `own_kinds`."""
    names = [name for task in tasks for name in TASKS.get(task, ())]
    if "own" in tasks:
        names += [GROUP_OF_KIND[kind] for kind in own_kinds if kind in GROUP_OF_KIND]
    return list(dict.fromkeys(names))
