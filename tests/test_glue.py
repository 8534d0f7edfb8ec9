"""GLUE's files are read with their quirks, scored officially, written for the server, refused with a line number."""

from pathlib import Path

import numpy as np
import pytest

from bert_jax.config.task_options import DataOptions
from bert_jax.errors import UserError
from bert_jax.tasks import glue
from bert_jax.tasks.glue import GlueTask
from bert_jax.tasks.interface import Instances, Split, Task
from bert_jax.tasks.registry import open_task
from bert_jax.tasks.scoring import score_predictions
from bert_jax.tasks.texts import TextExample
from tests.finetune_data import tokenizer

# Rows of the shared copies (README there), all of the official files.
ROWS = {
    "cola": {"train": 8551, "dev": 1043, "test": 1063},
    "sst2": {"train": 67349, "dev": 872, "test": 1821},
    "mrpc": {"train": 4076, "test": 1725},
    "stsb": {"train": 5749, "dev": 1500, "test": 1379},
    "rte": {"train": 2490, "dev": 277, "test": 3000},
    "wnli": {"train": 635, "dev": 71, "test": 146},
    "qnli": {"dev": 5463, "test": 5463},
}


def task_of(folder: Path, name: str, **options: object) -> GlueTask:
    return GlueTask(name, data=DataOptions(directory=str(folder), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ROWS)
def test_the_official_files_are_read_whole(shared_data: Path, name: str):
    task = task_of(shared_data / "glue", name)
    for split, count in ROWS[name].items():
        examples = task.read(split)
        assert len(examples) == count
        labeled = split != "test" or name == "mrpc"
        assert all((example.label is not None) == labeled for example in examples)
        assert all(example.text.strip() for example in examples)


def test_quotes_are_ordinary_characters(shared_data: Path):
    first = task_of(shared_data / "glue", "mrpc").read("train")[0]
    assert first.text.count('"') == 2
    assert first.label == 1


def test_microsofts_train_file_is_divided_by_glues_ids(tmp_path: Path):
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    rows = "".join(f'{i % 2}\t{i}\t{i + 100}\tfirst {i}\tsecond "{i}\r\n' for i in range(5))
    (tmp_path / "msr_paraphrase_train.txt").write_bytes((header + rows).encode())
    with pytest.raises(UserError, match=r"dev_fraction=0.1.*dev_split=test"):
        task_of(tmp_path, "mrpc").read("dev")
    (tmp_path / "dev_ids.tsv").write_text("1\t101\n4\t104\n")
    task = task_of(tmp_path, "mrpc")
    assert [example.text for example in task.read("dev")] == ["first 1", "first 4"]
    assert [example.text_pair for example in task.read("train")] == ['second "0', 'second "2', 'second "3']
    (tmp_path / "dev_ids.tsv").write_bytes(b"1\t101\n\xff\t104\n")
    with pytest.raises(UserError, match=r"dev_ids.tsv line 2: not UTF-8 text"):
        task.read("train")
    (tmp_path / "dev_ids.tsv").write_text("1\t101\n4\t104\n")
    (tmp_path / "msr_paraphrase_train.txt").write_bytes((header.replace("#1 ID", "ID1") + rows).encode())
    with pytest.raises(UserError, match=r"msr_paraphrase_train.txt line 2: there is no column '#1 ID'"):
        task.read("train")


def test_a_part_of_train_is_held_out_the_same_every_time(shared_data: Path):
    task = task_of(shared_data / "glue", "mrpc", dev_fraction=0.1, max_seq_length=64)
    train, dev = (list(task._with_held_out_dev(split)) for split in ("train", "dev"))
    assert len(dev) == 408
    assert len(train) + len(dev) == 4076
    assert not {e.text + str(e.text_pair) for e in train} & {e.text + str(e.text_pair) for e in dev}
    assert dev == list(task_of(shared_data / "glue", "mrpc", dev_fraction=0.1)._with_held_out_dev("dev"))
    assert task.eval_splits() == ("dev",)


def test_broken_rows_of_qqp_are_left_out_and_others_are_refused_by_line(tmp_path: Path):
    (tmp_path / "train.tsv").write_text(
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\thow\twhy\t1\n4\t5\n6\t7\t8\twho\twhat\t0\n"
    )
    assert [example.label for example in task_of(tmp_path, "qqp").read("train")] == [1, 0]
    (tmp_path / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\ta\tentailment\n")
    with pytest.raises(UserError, match=r"train.tsv line 3: 3 columns, expected 4"):
        task_of(tmp_path, "rte").read("train")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        (
            "rte",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tperhaps\n",
            "line 2: unknown label 'perhaps': fix the row; the labels of rte are",
        ),
        ("rte", "index\tpremise\tsentence2\tlabel\n0\ta\tb\tentailment\n", "there is no column 'sentence1'"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\tvery\n", "line 2: 'very' is not a number"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\tnan\n", "line 2: 'nan' is not a number: fix column score"),
        ("cola", "gj04\t7\t\tA sentence.\n", "line 1: unknown label '7'"),
        ("cola", "gj04\t1\tA sentence.\n", "line 1: 3 columns, expected 4"),
    ],
)
def test_a_wrong_row_is_one_line_with_its_number(tmp_path: Path, name: str, content: str, match: str):
    (tmp_path / "train.tsv").write_text(content)
    with pytest.raises(UserError, match=match) as error:
        task_of(tmp_path, name).read("train")
    assert "\n" not in str(error.value)


def test_missing_files_and_bad_bytes_are_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"contains no train\.tsv"):
        task_of(tmp_path, "rte").read("train")
    with pytest.raises(UserError, match=r"config.data.directory is empty: give the folder"):
        GlueTask("rte", data=DataOptions()).read("train")
    (tmp_path / "train.tsv").write_bytes(b"index\tsentence1\tsentence2\tlabel\n0\t\xff\xfe\tb\tentailment\n")
    with pytest.raises(UserError, match=r"train.tsv line 2: not UTF-8"):
        task_of(tmp_path, "rte").read("train")
    (tmp_path / "train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n")
    with pytest.raises(UserError, match="the train set of rte is empty"):
        task_of(tmp_path, "rte").load("train", tokenizer=tokenizer())


def test_instances_are_cls_a_sep_b_sep(tmp_path: Path):
    task = GlueTask("rte", data=DataOptions(max_seq_length=10))
    words = tokenizer()
    features = task.featurize(
        [TextExample("the film was good", "it was", 0), TextExample("good " * 20, "bad " * 20, 1)],
        tokenizer=words,
        training=True,
    )
    pieces = [words.convert_ids_to_pieces(ids.tolist()) for ids in features.ids]
    assert pieces[0] == ["[CLS]", "the", "film", "was", "good", "[SEP]", "it", "was", "[SEP]"]
    assert features.first_lengths.tolist() == [6, 6]
    assert pieces[1] == ["[CLS]", *["good"] * 4, "[SEP]", *["bad"] * 3, "[SEP]"]
    assert features.targets == [0, 1]


def split_of(task: Task, labels: list[float], *, name: str = "dev") -> Split:
    examples = [TextExample(f"text {i}", None, label) for i, label in enumerate(labels)]
    return Split(name, examples, Instances([np.ones(3, np.int32)] * len(labels), np.full(len(labels), 3), list(labels)))


def test_each_task_has_its_official_metric():
    outputs = [np.array(row, np.float32) for row in ([2, 1], [0, 1], [0, 3], [1, 0])]
    assert open_task("cola").score(split_of(open_task("cola"), [0, 1, 0, 0]), outputs) == pytest.approx(
        {"mcc": 1 / np.sqrt(3), "accuracy": 0.75}
    )
    assert open_task("mrpc").score(split_of(open_task("mrpc"), [0, 1, 0, 1]), outputs) == {"f1": 0.5, "accuracy": 0.5}
    assert open_task("sst2").score(split_of(open_task("sst2"), [0, 1, 0, 0]), outputs) == {"accuracy": 0.75}
    scores = [np.array([value], np.float32) for value in (0.1, 4.0, 3.0, 9.0)]
    assert open_task("stsb").score(split_of(open_task("stsb"), [0, 2, 3, 5]), scores)["spearman"] == pytest.approx(0.8)
    assert {name: spec.metrics[0] for name, spec in glue.TASKS.items()} == {
        "cola": "mcc", "sst2": "accuracy", "mrpc": "f1", "stsb": "spearman", "qqp": "f1", "mnli": "accuracy",
        "qnli": "accuracy", "rte": "accuracy", "wnli": "accuracy", "ax": "mcc",
    }  # fmt: skip


def test_predictions_are_written_as_the_server_reads_them(tmp_path: Path):
    rte = open_task("rte")
    path = rte.write_predictions(
        split_of(rte, [0, 1], name="test"), [np.array([1.0, 0]), np.array([0.0, 1])], directory=tmp_path
    )[0]
    assert path.name == "RTE.tsv"
    assert path.read_text() == "index\tprediction\n0\tentailment\n1\tnot_entailment\n"
    stsb = open_task("stsb")
    path = stsb.write_predictions(
        split_of(stsb, [0, 1], name="test"), [np.array([5.7]), np.array([1.25])], directory=tmp_path
    )[0]
    assert path.read_text() == "index\tprediction\n0\t5.000\n1\t1.250\n"
    names = sorted(name for spec in glue.TASKS.values() for name in spec.submission)
    assert names == ["AX", "CoLA", "MNLI-m", "MNLI-mm", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B", "WNLI"]


def test_a_predictions_file_is_scored_against_the_official_file(shared_data: Path, tmp_path: Path):
    gold = task_of(shared_data / "glue", "rte").read("dev")
    words = [("entailment", "not_entailment")[int(e.label or 0)] for e in gold]
    words[:27] = [("entailment", "not_entailment")[word == "entailment"] for word in words[:27]]
    path = tmp_path / "RTE.tsv"
    path.write_text("index\tprediction\n" + "".join(f"{i}\t{word}\n" for i, word in enumerate(words)))
    data = str(shared_data / "glue" / "RTE" / "dev.tsv")
    assert score_predictions(task="rte", predictions=str(path), data=data) == {"accuracy": pytest.approx(250 / 277)}
    path.write_text("index\tprediction\n0\tentailment\n")
    with pytest.raises(UserError, match=r"1 predictions .* has 277 rows"):
        score_predictions(task="rte", predictions=str(path), data=data)
    path.write_text("index\tprediction\n" + "0\tmaybe\n" * 277)
    with pytest.raises(UserError, match="line 2: unknown label 'maybe'"):
        score_predictions(task="rte", predictions=str(path), data=data)
    with pytest.raises(UserError, match="--task=glue: choose one of cola"):
        score_predictions(task="glue", predictions=str(path), data=data)


def test_the_papers_average_is_that_of_nine_numbers():
    from bert_jax.finetuning.report import glue_average

    # BERT-Base's row of Table 1, whose average the paper gives as 79.6.
    base = {"qqp": 71.2, "qnli": 90.5, "sst2": 93.5, "cola": 52.1, "stsb": 85.8, "mrpc": 88.9, "rte": 66.4}
    records = {
        name: {"best": {"metrics": {"dev": {glue.TASKS[name].metrics[0]: value}}}} for name, value in base.items()
    }
    mnli = {"dev_matched": {"accuracy": 84.6}, "dev_mismatched": {"accuracy": 83.4}}
    records["mnli"] = {"best": {"metrics": mnli}}
    records["wnli"] = {"best": {"metrics": {"dev": {"accuracy": 56.3}}}}
    average = glue_average(records)
    assert round(average["average"], 1) == 79.6
    assert len(average["numbers"]) == average["of"] == 9


def test_limits_cut_dev_and_never_a_test_set(tmp_path: Path):
    for split, end in (("dev", "\tentailment"), ("test", "")):
        rows = "".join(f"{i}\tgood\tbad{end}\n" for i in range(9))
        (tmp_path / f"{split}.tsv").write_text("index\tsentence1\tsentence2" + ("\tlabel" if end else "") + "\n" + rows)
    task = task_of(tmp_path, "rte", max_eval_examples=3, max_train_examples=2)
    assert len(task.load("dev", tokenizer=tokenizer()).examples) == 3
    assert len(task.load("test", tokenizer=tokenizer()).examples) == 9


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_prepared_tfds_data_set_gives_the_same_rows(tmp_path: Path):
    tfds = pytest.importorskip("tensorflow_datasets")
    tfds.disable_progress_bar()
    rows = [(f"sentence {number}", "the film", number % 2) for number in range(20)]

    class Rte(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["entailment", "not_entailment"])
            text = tfds.features.Text()
            features = {"sentence1": text, "sentence2": text, "label": label, "idx": np.int32}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples(), "test": self._generate_examples(unlabelled=True)}

        def _generate_examples(self, *, unlabelled=False):
            for number, (first, second, label) in enumerate(rows):
                label = -1 if unlabelled else label
                yield number, {"sentence1": first, "sentence2": second, "label": label, "idx": number}

    Rte(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    task = GlueTask("rte", data=DataOptions(directory=f"tfds:{tmp_path / 'rte' / '1.0.0'}"))
    written = tfds.builder_from_directory(tmp_path / "rte" / "1.0.0").as_data_source(split="test")
    assert [int(row["idx"]) for row in written] != list(range(20))  # TFDS shuffles when it writes
    assert task.read("dev") == [TextExample(*row) for row in rows]
    # The server goes by the number in the submission, which is the place of the row.
    assert task.read("test") == [TextExample(first, second, None) for first, second, _ in rows]
    with pytest.raises(UserError, match="has no feature question: its features are"):
        GlueTask("qnli", data=task.data).read("dev")
    with pytest.raises(UserError, match="has no split train"):
        task.read("train")
    with pytest.raises(UserError, match="no such TFDS data set"):
        GlueTask("rte", data=DataOptions(directory=f"tfds:{tmp_path}/nothing/x")).read("train")
