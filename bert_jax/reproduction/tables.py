"""Tables 1 to 8 and Figure 5 of the paper (arXiv 1810.04805v2): rows, columns, and the paper's values.

Figure 5's values are decoded from the drawing. The rows of other systems in tables 1 and 7 are the paper's too; where
this package trains the same kind of system at equal data and compute, the row says so.
"""

from collections.abc import Mapping, Sequence

from bert_jax.config.task_options import FEATURES
from bert_jax.reproduction.experiments import AVERAGE, HELDOUT, PAIRS, Column, Row, Table
from bert_jax.reproduction.models import MIXES, mix_name

# Columns by key; the scale's `measures` and `replacements` name them too.
COLUMNS: Mapping[str, Column] = {
    column.key: column
    for column in (
        Column("mnli", "MNLI-m accuracy", task="mnli", metric="accuracy", split="dev_matched"),
        Column("mnli_mm", "MNLI-mm accuracy", task="mnli", metric="accuracy", split="dev_mismatched"),
        Column("qqp", "QQP F1", task="qqp", metric="f1"),
        Column("qnli", "QNLI accuracy", task="qnli", metric="accuracy"),
        Column("sst2", "SST-2 accuracy", task="sst2", metric="accuracy"),
        Column("cola", "CoLA Matthews corr.", task="cola", metric="mcc"),
        Column("stsb", "STS-B Spearman corr.", task="stsb", metric="spearman"),
        Column("mrpc_f1", "MRPC F1", task="mrpc", metric="f1"),
        Column("mrpc", "MRPC accuracy", task="mrpc", metric="accuracy"),
        Column("rte", "RTE accuracy", task="rte", metric="accuracy"),
        Column("average", "average", kind=AVERAGE),
        Column("squad_em", "SQuAD 1.1 EM", task="squad_v1", metric="exact_match"),
        Column("squad_f1", "SQuAD 1.1 F1", task="squad_v1", metric="f1"),
        Column("squad2_em", "SQuAD 2.0 EM", task="squad_v2", metric="exact"),
        Column("squad2_f1", "SQuAD 2.0 F1", task="squad_v2", metric="f1"),
        Column("swag", "SWAG accuracy", task="swag", metric="accuracy"),
        Column("ner", "NER F1", task="ner", metric="f1"),
        Column("ner_test", "NER F1 on test", task="ner", metric="f1", split="test"),
        Column(
            "ner_features",
            "NER F1, features",
            task="ner_features",
            metric="f1",
            changes={"ner.features": "concat_last_four"},
        ),
        Column(
            "perplexity",
            "LM perplexity",
            kind=HELDOUT,
            metric="eval/mlm_perplexity",
            percent=False,
            is_lower_better=True,
        ),
        Column(
            "bits_per_byte",
            "bits per byte",
            kind=HELDOUT,
            metric="eval/bits_per_byte",
            percent=False,
            is_lower_better=True,
        ),
        Column("minimal_pairs", "minimal pairs accuracy", kind=PAIRS, metric="accuracy"),
    )
}


def columns(*keys: str) -> tuple[Column, ...]:
    """Return the columns of these keys."""
    return tuple(COLUMNS[key] for key in keys)


def _values(keys: Sequence[str], *values: float | None) -> dict[str, float]:
    return {key: value for key, value in zip(keys, values, strict=True) if value is not None}


_GLUE = ("mnli", "mnli_mm", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc_f1", "rte", "average")
_DEV = "the paper's values are of the GLUE server's test sets, ours of the dev sets"
_BILSTM = {"model.bilstm_layers": 1}
_ELMO, _FROZEN = "lstm_ltr,lstm_rtl", {"model.frozen_encoder": True, **_BILSTM}

TABLE_1 = Table(
    "1",
    "GLUE",
    "4.1",
    columns(*_GLUE),
    (
        Row("Pre-OpenAI SOTA", paper=_values(_GLUE, 80.6, 80.1, 66.1, 82.3, 93.2, 35.0, 81.0, 86.0, 61.7, 74.0)),
        Row("BiLSTM+ELMo+Attn", paper=_values(_GLUE, 76.4, 76.1, 64.8, 79.8, 90.4, 36.0, 73.3, 84.9, 56.8, 71.0)),
        Row("OpenAI GPT", paper=_values(_GLUE, 82.1, 81.4, 70.3, 87.4, 91.3, 45.4, 80.0, 82.3, 56.0, 75.1)),
        Row("ELMo-like: frozen LSTMs with a BiLSTM, at equal data and compute", _ELMO, changes=_FROZEN),
        Row("GPT-like: left-to-right, at equal data and compute", "ltr"),
        Row("BERT-Base", "base", _values(_GLUE, 84.6, 83.4, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4, 79.6)),
        Row("BERT-Large", "large", _values(_GLUE, 86.7, 85.9, 72.1, 92.7, 94.9, 60.5, 86.5, 89.3, 70.1, 82.1)),
    ),
    notes=(_DEV, "the average is over the columns that are there"),
)

_SQUAD = ("squad_em", "squad_f1")
_TRIVIAQA = {"squad.intermediate_file": "triviaqa/train.json"}
TABLE_2 = Table(
    "2",
    "SQuAD 1.1",
    "4.2",
    columns(*_SQUAD),
    (
        Row("BERT-Base (single)", "base", _values(_SQUAD, 80.8, 88.5)),
        Row("BERT-Large (single)", "large", _values(_SQUAD, 84.1, 90.9)),
        Row("BERT-Large (ensemble)", "large", _values(_SQUAD, 85.8, 91.8), ensemble=True),
        Row("BERT-Large (single + TriviaQA)", "large", _values(_SQUAD, 84.2, 91.1), changes=_TRIVIAQA),
        Row("BERT-Large (ensemble + TriviaQA)", "large", _values(_SQUAD, 86.2, 92.2), changes=_TRIVIAQA, ensemble=True),
    ),
    notes=(
        "the paper's ensemble is of seven models, each with its own pre-training; ours is of the fine-tuning seeds",
    ),
)

_SQUAD_2 = ("squad2_em", "squad2_f1")
TABLE_3 = Table(
    "3",
    "SQuAD 2.0",
    "4.3",
    columns(*_SQUAD_2),
    (Row("BERT-Base", "base"), Row("BERT-Large (single)", "large", _values(_SQUAD_2, 78.7, 81.9))),
)

TABLE_4 = Table(
    "4",
    "SWAG",
    "4.4",
    columns("swag"),
    (Row("BERT-Base", "base", {"swag": 81.6}), Row("BERT-Large", "large", {"swag": 86.6})),
    notes=("values of the dev set",),
)

_ABLATION = ("mnli", "qnli", "mrpc", "sst2", "squad_f1")
TABLE_5 = Table(
    "5",
    "ablation over the pre-training tasks",
    "5.1",
    columns(*_ABLATION),
    (
        Row("BERT-Base", "base", _values(_ABLATION, 84.4, 88.4, 86.7, 92.7, 88.5)),
        Row("No NSP", "no_nsp", _values(_ABLATION, 83.9, 84.9, 86.5, 92.6, 87.9)),
        Row("LTR & No NSP", "ltr", _values(_ABLATION, 82.1, 84.3, 77.5, 92.1, 77.8)),
        Row("+ BiLSTM", "ltr", _values(_ABLATION, 82.1, 84.1, 75.7, 91.6, 84.9), changes=_BILSTM),
    ),
    takes_measures=True,
)

_SIZES = ("perplexity", "mnli", "mrpc", "sst2")
_SIZE_ROWS = (
    ("L=3, H=768, A=12", 5.84, 77.9, 79.8, 88.4),
    ("L=6, H=768, A=3", 5.24, 80.6, 82.2, 90.7),
    ("L=6, H=768, A=12", 4.68, 81.9, 84.8, 91.3),
    ("L=12, H=768, A=12", 3.99, 84.4, 86.7, 92.9),
    ("L=12, H=1024, A=16", 3.54, 85.7, 86.9, 93.3),
    ("L=24, H=1024, A=16", 3.23, 86.6, 87.8, 93.7),
)
TABLE_6 = Table(
    "6",
    "ablation over the size of the model",
    "5.2",
    columns(*_SIZES),
    tuple(Row(title, f"size_{number}", _values(_SIZES, *values)) for number, (title, *values) in enumerate(_SIZE_ROWS)),
    takes_measures=True,
    notes=("the perplexity is that of the masked language model on held-out text",),
)

_NER = ("ner", "ner_test")
_FEATURE_TITLES = (
    "Embeddings",
    "Second-to-Last Hidden",
    "Last Hidden",
    "Weighted Sum Last Four Hidden",
    "Concat Last Four Hidden",
    "Weighted Sum All 12 Layers",
)
_FEATURE_F1 = (91.0, 95.6, 94.9, 95.9, 96.1, 95.5)
TABLE_7 = Table(
    "7",
    "CoNLL-2003 named entity recognition",
    "5.3",
    columns(*_NER),
    (
        Row("ELMo", paper=_values(_NER, 95.7, 92.2)),
        Row(
            "ELMo-like: features of two LSTMs, at equal data and compute",
            _ELMO,
            changes={"ner.features": "sum_all"},
            task="ner_features",
        ),
        Row("CVT", paper=_values(_NER, None, 92.6)),
        Row("CSE", paper=_values(_NER, None, 93.1)),
        Row("Fine-tuning, BERT-Large", "large_cased", _values(_NER, 96.6, 92.8)),
        Row("Fine-tuning, BERT-Base", "base_cased", _values(_NER, 96.4, 92.4)),
        *(
            Row(f"Features, {title}", "base_cased", {"ner": value}, changes={"ner.features": name}, task="ner_features")
            for title, value, name in zip(_FEATURE_TITLES, _FEATURE_F1, FEATURES, strict=True)
        ),
    ),
)

_MASKING = ("mnli", "ner", "ner_features")
_MASKING_ROWS = (
    (84.2, 95.4, 94.9),
    (84.3, 94.9, 94.0),
    (84.1, 95.2, 94.6),
    (84.4, 95.2, 94.7),
    (83.7, 94.8, 94.6),
    (83.6, 94.9, 94.6),
)
TABLE_8 = Table(
    "8",
    "ablation over the masking procedure",
    "C.2",
    columns(*_MASKING),
    tuple(
        Row("MASK {} %, SAME {} %, RND {} %".format(*mix), mix_name(mix), _values(_MASKING, *values))
        for mix, values in zip(MIXES, _MASKING_ROWS, strict=True)
    ),
    takes_measures=True,
)

_POINTS = (0.03, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of 1,000,000 steps
_CURVES = {
    "Masked LM (BERT-Base)": ("base", (78.6, 79.6, 80.5, 82.2, 83.2, 84.0, 84.3, 84.4)),
    "Left-to-right": ("ltr", (79.4, 79.8, 80.3, 81.0, 81.7, 81.9, 82.1, 82.2)),
}
FIGURE_5 = Table(
    "figure5",
    "ablation over the number of training steps",
    "C.1",
    columns("mnli"),
    tuple(
        Row(f"{curve}, {point:.0%} of the steps", model, {"mnli": value}, curve=curve, point=point)
        for curve, (model, values) in _CURVES.items()
        for point, value in zip(_POINTS, values, strict=True)
    ),
    takes_measures=True,
    notes=("each point is a checkpoint of one run whose learning rate decays to 0 at the last step",),
)

TABLES: Mapping[str, Table] = {
    table.name: table for table in (TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6, TABLE_7, TABLE_8, FIGURE_5)
}
