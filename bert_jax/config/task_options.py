"""What a user can choose about a task's data, and which tasks read which options; part of the fine-tuning config."""

import dataclasses
from collections.abc import Mapping, Sequence

from bert_jax.config.data import MIN_SEQ_LENGTH
from bert_jax.config.fields import field

# The rows of Table 7 (paper section 5.3).
FEATURES = ("embeddings", "second_to_last", "last", "sum_last_four", "concat_last_four", "sum_all")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Where a task's data is, and how much of it is used."""

    directory: str = field("", doc="Folder of the official files, or tfds:NAME for GLUE.")
    train_file: str = field("", doc="Within the directory, or anywhere; empty: the official name.")
    dev_file: str = field("", doc="Likewise, of dev.")
    test_file: str = field("", doc="Likewise, of test.")
    dev_fraction: float = field(
        0.0,
        at_least=0,
        below=1,
        doc="Fraction of train held out as dev, by row, article or document; needed where there is no dev file.",
    )
    dev_split: str = field(
        "dev", choices=("dev", "test"), doc="test: select on the test file, for data sets without a dev file."
    )
    max_seq_length: int = field(128, at_least=MIN_SEQ_LENGTH, unit="tokens", doc="Length of an instance.")
    max_train_examples: int = field(0, at_least=0, unit="examples", doc="0: all; else N, sampled with the seed below.")
    max_eval_examples: int = field(0, at_least=0, unit="examples", doc="Likewise, of dev; test sets are never cut.")
    seed: int = field(0, at_least=0, doc="Seed of what is held out and sampled.")


@dataclasses.dataclass(frozen=True)
class SquadOptions:
    """The constants of run_squad.py of the original."""

    doc_stride: int = field(128, above=0, unit="tokens", doc="From one window of a context to the next.")
    max_query_length: int = field(64, above=0, unit="tokens", doc="Longer questions are truncated.")
    n_best_size: int = field(20, above=0, unit="answers", doc="Candidates per question.")
    max_answer_length: int = field(30, above=0, unit="tokens", doc="Longest answer.")
    null_score_threshold: str = field("tune", doc='"tune": on dev; or a number.')
    skip_bad_answers: bool = field(
        False, doc="Leave out training questions whose answer is not in the context, instead of an error."
    )
    intermediate_file: str = field(
        "", doc="Another data set of the same form to train on first (the paper's TriviaQA step)."
    )
    intermediate_epochs: int = field(1, above=0, unit="epochs", doc="Length of that first stage.")


@dataclasses.dataclass(frozen=True)
class NerOptions:
    """How CoNLL columns are read and how sentences are put into rows."""

    tag_column: int = field(-1, doc="Column of the tags; negative: from the end.")
    document_context: bool = field(
        True, doc='The paper\'s "maximal document context"; false: one sentence per instance.'
    )
    features: str = field("", choices=("", *FEATURES), doc="Feature-based, a row of Table 7; empty: fine-tuned.")
    bilstm_hidden_size: int = field(768, above=0, doc="Width of the feature-based tagger.")
    bilstm_layers: int = field(2, above=0, unit="layers", doc="Depth of the feature-based tagger.")


@dataclasses.dataclass(frozen=True)
class OwnOptions:
    """The columns of custom data: JSON lines, or a TSV file with a header line."""

    kind: str = field("classification", doc="What is predicted: a name of kinds/table.py.")
    text: str = field("text", doc="Column; for span: the question; for choice: the beginning; for tags: the words.")
    text_pair: str = field("", doc="Column; for span: the context; empty: single sentences.")
    label: str = field("label", doc="Column; for span: the answer's text; for tags: one tag per word.")
    choices: str = field("", doc="For choice: the column of a list, or columns separated by commas.")
    answer_start: str = field(
        "answer_start",
        doc="For span: the column of the answer's first character; without it the first occurrence counts.",
    )
    labels: str = field(
        "", doc="All labels separated by commas, in the order of their ids; empty: those of train, sorted."
    )


# The tasks, and the groups of options that each of them reads.
TASKS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"), ()),
    **dict.fromkeys(("squad_v1", "squad_v2"), ("squad",)),
    "swag": (),
    "ner": ("ner",),
    "own": ("own",),
}
# Custom data of these kinds has a benchmark's options too.
GROUP_OF_KIND = {"span": "squad", "tags": "ner"}


def option_groups(tasks: Sequence[str], *, own_kinds: Sequence[str]) -> list[str]:
    """Return the names of the groups that `tasks` read, custom data being of one of `own_kinds`."""
    names = [name for task in tasks for name in TASKS.get(task, ())]
    if "own" in tasks:
        names += [GROUP_OF_KIND[kind] for kind in own_kinds if kind in GROUP_OF_KIND]
    return list(dict.fromkeys(names))
