"""Hold what a user can choose about a task's data; part of the fine-tuning config."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Say where a task's data lies, and how much of it is used."""

    directory: str = ""  # of the official files, or tfds:NAME for GLUE
    train_file: str = ""  # within the directory, or anywhere; empty: the official name
    dev_file: str = ""
    test_file: str = ""
    dev_fraction: float = (
        0.0  # share of train held out as dev, by row, article or document; needed where no dev file is
    )
    dev_split: str = "dev"  # "test": select on the test file, for data sets published without a dev file
    max_seq_length: int = 128
    max_train_examples: int = 0  # 0: all; else so many, drawn with the seed below
    max_eval_examples: int = 0  # likewise, of dev; test sets are never cut
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class SquadOptions:
    """Hold the constants of run_squad.py of the original."""

    doc_stride: int = 128
    max_query_length: int = 64
    n_best_size: int = 20
    max_answer_length: int = 30  # in pieces
    null_score_threshold: str = "tune"  # on dev; or a number
    skip_bad_answers: bool = False  # leave out training questions whose answer is not in the context
    intermediate_file: str = ""  # another data set of the same form to train on first (the paper's TriviaQA step)
    intermediate_epochs: int = 1


@dataclasses.dataclass(frozen=True)
class NerOptions:
    """Say how CoNLL columns are read and how sentences are put into rows."""

    tag_column: int = -1
    document_context: bool = True  # the paper's "maximal document context"; False: a sentence a row
    features: str = ""  # feature-based (Table 7): one of FEATURES; empty: fine-tuned
    bilstm_hidden_size: int = 768
    bilstm_layers: int = 2


# The rows of Table 7 (paper section 5.3).
FEATURES = ("embeddings", "second_to_last", "last", "sum_last_four", "concat_last_four", "sum_all")


@dataclasses.dataclass(frozen=True)
class OwnOptions:
    """Name the columns of own data: JSON lines, or a TSV file with a header line."""

    kind: str = "classification"  # one of kinds.table.KINDS
    text: str = "text"  # for span: the question; for choice: the beginning; for tags: the words
    text_pair: str = ""  # for span: the context; empty: single sentences
    label: str = "label"  # for span: the answer's text; for tags: a tag a word
    choices: str = ""  # for choice: the column of a list, or names parted by commas
    answer_start: str = (
        "answer_start"  # for span: the answer's first character; without the column the first place counts
    )
    labels: str = ""  # all labels parted by commas, in the order of their ids; empty: those of train, sorted
