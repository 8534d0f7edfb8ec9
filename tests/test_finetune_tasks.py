"""Every task is fine-tuned by one command: predictions for the server, stages, ensembles, frozen features, exports."""

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_jax.config.finetuning import FinetuneConfig, from_config_dict
from bert_jax.config.task_options import FEATURES
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.errors import UserError
from bert_jax.finetuning import finetune
from bert_jax.prediction.model import load
from bert_jax.runs.runtime import FINISHED, INTERRUPTED
from bert_jax.runs.stopping import StopRequest
from bert_jax.tasks import glue
from bert_jax.tasks.scoring import score_predictions
from tests.finetune_data import write_conll, write_jsonl, write_source

CONTEXT = "the film was very good and it was fine"
PAIR = "index\tsentence1\tsentence2"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "model", num_hidden_layers=4)


def config_of(task: str, folder: Path, **sections: dict[str, Any]) -> FinetuneConfig:
    fields: dict[str, dict[str, Any]] = {
        "data": {"directory": str(folder), "max_seq_length": 32},
        "train": {"batch_size": 4, "num_epochs": 1.0},
        "log": {"every": 100},
    }
    if "squad" in task or sections.get("own", {}).get("kind") == "span":
        fields["squad"] = {"max_query_length": 8, "doc_stride": 4}
    for name, changes in sections.items():
        fields[name] = {**fields.get(name, {}), **changes}
    return from_config_dict({"task": task, **fields})


def run(config: FinetuneConfig, source: Path, workdir: Path, **request: Any) -> dict[str, Any]:
    asked = finetune.Request(init=str(source), workdir=str(workdir), **request)
    assert finetune.finetune(config, request=asked) == FINISHED
    return json.loads((workdir / "results.json").read_text())


def write_glue(root: Path) -> Path:
    """Write eight rows of train, four of dev and three of test of MRPC (Microsoft's files) and MNLI, and AX."""
    sizes = {"train": 8, "dev": 4, "test": 3}
    for folder in ("MRPC", "MNLI", "AX"):
        (root / folder).mkdir(parents=True)
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    for name, count in (("train", 12), ("test", 3)):
        rows = "".join(f'{i % 2}\t{i}\t{i + 50}\tthe "film\tit was\r\n' for i in range(count))
        (root / "MRPC" / f"msr_paraphrase_{name}.txt").write_bytes((header + rows).encode("utf-8-sig"))
    (root / "MRPC" / "dev_ids.tsv").write_text("".join(f"{i}\t{i + 50}\n" for i in range(0, 12, 3)))
    for split, count in sizes.items():
        for kind in ("",) if split == "train" else ("_matched", "_mismatched"):
            label = "" if split == "test" else "\tgold_label"
            named = [("entailment", "neutral", "contradiction")[i % 3] for i in range(count)]
            rows = "".join(f"{i}\tgood\tbad" + (f"\t{named[i]}" if label else "") + "\n" for i in range(count))
            (root / "MNLI" / f"{split}{kind}.tsv").write_text(f"{PAIR}{label}\n{rows}")
    (root / "AX" / "diagnostic.tsv").write_text(f"{PAIR}\n0\tgood\tbad\n1\tbad\tgood\n")
    return root


@pytest.mark.slow
def test_the_benchmark_is_one_command_and_its_zip_is_what_the_server_takes(tmp_path: Path, source: Path):
    root = write_glue(tmp_path / "glue")
    record = run(config_of("all", root), source, tmp_path / "work", predict_test=True)
    assert set(record["tasks"]) == {"mrpc", "mnli"}
    assert set(record["glue"]["numbers"]) == {"mrpc/dev", "mnli/dev_matched", "mnli/dev_mismatched"}
    with zipfile.ZipFile(tmp_path / "work" / "glue_submission.zip") as archive:
        lines = {name: archive.read(name).decode().splitlines() for name in archive.namelist()}
    rows = {"MRPC.tsv": 3, "MNLI-m.tsv": 3, "MNLI-mm.tsv": 3, "AX.tsv": 2}
    assert {name: len(found) - 1 for name, found in lines.items()} == rows
    assert all(found[0] == "index\tprediction" for found in lines.values())
    assert [line.split("\t")[0] for line in lines["AX.tsv"][1:]] == ["0", "1"]
    assert lines["AX.tsv"][1].split("\t")[1] in glue.TASKS["ax"].labels


def test_a_wrong_file_of_the_last_task_is_said_before_the_first_is_trained(tmp_path: Path, source: Path):
    root = write_glue(tmp_path / "glue")
    (root / "MNLI" / "dev_mismatched.tsv").write_text(f"{PAIR}\tgold_label\n0\tgood\tbad\tperhaps\n")
    with pytest.raises(UserError, match=r"dev_mismatched.tsv line 2: unknown label 'perhaps'"):
        run(config_of("mrpc,mnli", root), source, tmp_path / "work")
    (root / "MNLI" / "dev_mismatched.tsv").write_text((root / "MNLI" / "dev_matched.tsv").read_text())
    (root / "STS-B").mkdir()
    for split, end in (("train", "\tscore\n0\tgood\tbad\t2.5\n"), ("test", "\n0\tgood\tbad\n")):
        (root / "STS-B" / f"{split}.tsv").write_text(PAIR + end)
    with pytest.raises(UserError, match="the test set of stsb has no labels"):
        run(config_of("mrpc,stsb", root, data={"dev_split": "test"}), source, tmp_path / "other")
    assert not (tmp_path / "work" / "mrpc").exists()
    assert not (tmp_path / "other" / "mrpc").exists()


def test_the_diagnostics_are_answered_by_the_model_of_mnli_and_scored_by_their_labels(tmp_path: Path, source: Path):
    with pytest.raises(UserError, match=r"ax has no train set, so the model of mnli predicts it: .* type --task=mnli"):
        run(config_of("ax", tmp_path), source, tmp_path / "work")
    full = tmp_path / "diagnostic-full.tsv"
    full.write_text("Domain\tPremise\tHypothesis\tLabel\n" + "".join(f"\tg\tb\t{n}\n" for n in glue.TASKS["ax"].labels))
    (tmp_path / "AX.tsv").write_text(
        "index\tprediction\n" + "".join(f"{i}\t{n}\n" for i, n in enumerate(glue.TASKS["ax"].labels))
    )
    figures = score_predictions(task="ax", predictions=str(tmp_path / "AX.tsv"), data=str(full))
    assert figures == {"mcc": pytest.approx(1), "accuracy": 1}


def write_squad(path: Path, *, questions: int, impossible: bool) -> Path:
    qas = [
        {"id": f"q{i}", "question": "was it bad" if impossible and i % 2 else "was it good",
         "is_impossible": impossible and i % 2 == 1,
         "answers": [] if impossible and i % 2 else [{"text": "very good", "answer_start": CONTEXT.index("very")}]}
        for i in range(questions)
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}]}))
    return path


@pytest.mark.slow
def test_questions_are_learned_in_two_stages_and_answered_by_an_ensemble(tmp_path: Path, source: Path):
    folder = tmp_path / "data"
    write_squad(folder / "train-v2.0.json", questions=8, impossible=True)
    write_squad(folder / "dev-v2.0.json", questions=4, impossible=True)
    write_squad(folder / "trivia.json", questions=8, impossible=False)
    learning: dict[str, Any] = {"optimizer": {"learning_rate": 3e-3}, "train": {"num_epochs": 30.0}}
    config = config_of("squad_v2", folder, squad={"intermediate_file": "trivia.json"}, **learning)
    record = run(config, source, tmp_path / "work", seeds=2, ensemble=2, errors=9)
    assert len(record["ensemble"]["runs"]) == 2
    assert record["constant"] == 0.5  # leaving all unanswered
    assert all(run["metrics"]["dev"]["f1"] == 1.0 for run in record["runs"])
    assert record["ensemble"]["metrics"]["dev"]["f1"] == 1.0
    stage = json.loads((tmp_path / "work" / "intermediate" / "results.json").read_text())
    assert stage["train_examples"] == 8
    first = load_pretrained(tmp_path / "work" / "intermediate")
    assert first.architecture == "BertForQuestionAnswering"
    lines: list[str] = []
    run(config, source, tmp_path / "work", seeds=2, ensemble=2, errors=9)  # again: nothing is trained
    for name in ("dev", "ensemble-dev"):
        folder_of = tmp_path / "work" / "predictions" / name
        files = {file.name for file in folder_of.iterdir()}
        assert files == {"predictions.json", "nbest_predictions.json", "null_odds.json"}
        data = str(folder / "dev-v2.0.json")
        figures = score_predictions(task="squad_v2", predictions=str(folder_of / "predictions.json"), data=data)
        metrics = record["ensemble"]["metrics"]["dev"] if name != "dev" else record["best"]["metrics"]["dev"]
        assert figures["f1"] == pytest.approx(100 * metrics["f1"])
    export_folder(load_pretrained(tmp_path / "work"), out=tmp_path / "folder", report=lines.append)
    exported = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert exported["architectures"] == ["BertForQuestionAnswering"]


@pytest.mark.slow
def test_intermediate_training_gives_the_second_stage_its_head(tmp_path: Path, source: Path):
    """One step of Adam moves no parameter further than the learning rate, and the first stage takes twenty."""
    write_squad(tmp_path / "train-v1.1.json", questions=4, impossible=False)
    write_squad(tmp_path / "dev-v1.1.json", questions=2, impossible=False)
    write_squad(tmp_path / "trivia.json", questions=80, impossible=False)
    rate = 1e-3
    one: dict[str, Any] = {"optimizer": {"learning_rate": rate, "weight_decay": 0.0}}
    run(config_of("squad_v1", tmp_path, **one), source, tmp_path / "without")
    run(config_of("squad_v1", tmp_path, squad={"intermediate_file": "trivia.json"}, **one), source, tmp_path / "work")
    folders = ("without", "work/intermediate", "work")
    without, first, second = (load_pretrained(tmp_path / name).params["qa_outputs"]["kernel"] for name in folders)
    assert 0 < np.abs(second - first).max() <= 1.01 * rate
    assert np.abs(without - first).max() > 3 * rate  # where a second stage with a new head would be
    config = config_of("squad_v1", tmp_path, squad={"intermediate_file": "missing.json"})
    with pytest.raises(UserError, match=r"no such file: .*missing.json"):
        run(config, source, tmp_path / "missing")
    with pytest.raises(
        UserError, match=r"config.squad.intermediate_file: no such field in config.task=swag; .*leave it out"
    ):
        config_of("swag", tmp_path, squad={"intermediate_file": "trivia.json"})


@pytest.mark.slow
def test_one_of_four_endings_is_learned(tmp_path: Path, source: Path):
    header = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label\n"
    endings = [["was bad"] * 4 for _ in range(32)]
    right = [number % 4 for number in range(32)]
    for number, four in zip(right, endings, strict=True):
        four[number] = "was good"
    rows = [f"{i},,,s,the film,it,,{','.join(endings[i])},{right[i]}\n" for i in range(32)]
    for name, count in (("train", 32), ("val", 16), ("test", 8)):
        (tmp_path / f"{name}.csv").write_text(header + "".join(rows[:count]))
    learning: dict[str, Any] = {"optimizer": {"learning_rate": 3e-3}, "train": {"num_epochs": 8.0, "batch_size": 8}}
    record = run(config_of("swag", tmp_path, **learning), source, tmp_path / "work", predict_test=True, errors=2)
    assert record["constant"] == 0.25
    assert record["best"]["metrics"]["dev"]["accuracy"] == 1.0
    written = (tmp_path / "work" / "predictions" / "test" / "swag-test.csv").read_text().split()
    assert written == ["pred", *map(str, right[:8])]


@pytest.mark.parametrize(
    "context", [pytest.param(True, marks=pytest.mark.slow), pytest.param(False, marks=pytest.mark.soak)]
)
def test_entities_are_learned_with_and_without_the_document(tmp_path: Path, source: Path, context: bool):
    folder = write_conll(tmp_path / "data")
    learning: dict[str, Any] = {"optimizer": {"learning_rate": 3e-3}, "train": {"num_epochs": 12.0}}
    config = config_of("ner", folder, ner={"document_context": context}, **learning)
    record = run(config, source, tmp_path / "work", predict_test=True, errors=3)
    assert {name: metrics["f1"] for name, metrics in record["best"]["metrics"].items()} == {"dev": 1.0, "test": 1.0}
    assert load_pretrained(tmp_path / "work").labels == ["O", "B-PER", "I-PER"]
    lines = (tmp_path / "work" / "predictions" / "test" / "ner-test.txt").read_text().splitlines()
    assert len([line for line in lines if line]) == 12


@pytest.mark.slow
def test_frozen_features_are_learned_from_as_any_run(tmp_path: Path, source: Path):
    folder = write_conll(tmp_path / "data")
    small = {"features": "concat_last_four", "bilstm_hidden_size": 8, "bilstm_layers": 2}
    config = config_of("ner", folder, ner=small, train={"num_epochs": 40.0}, optimizer={"learning_rate": 3e-2})
    options: dict[str, Any] = {"seeds": 2, "ensemble": 2, "errors": 3, "predict_test": True}
    record = run(config, source, tmp_path / "work", **options)
    assert record["features"] == "concat_last_four"
    assert record["best"]["metrics"]["dev"]["f1"] == 1.0  # one sentence, again and again
    assert record["best"]["metrics"]["test"]["f1"] == 1.0
    assert record["ensemble"]["metrics"]["dev"]["f1"] == 1.0
    assert (tmp_path / "work" / "errors-dev.jsonl").read_text() == ""
    data = str(folder / "eng.testb")
    path = tmp_path / "work" / "predictions" / "ensemble-test" / "ner-test.txt"
    assert score_predictions(task="ner", predictions=str(path), data=data)["f1"] == 1.0
    assert run(config, source, tmp_path / "work", **options) == record  # finished runs are not run again


@pytest.mark.soak
@pytest.mark.parametrize("features", [name for name in FEATURES if name != "concat_last_four"])
def test_every_row_of_table_7_runs(tmp_path: Path, source: Path, features: str):
    folder = write_conll(tmp_path / "data")
    config = config_of("ner", folder, ner={"features": features, "bilstm_hidden_size": 4, "bilstm_layers": 1})
    assert run(config, source, tmp_path / "work")["features"] == features


@pytest.mark.slow
def test_a_stopped_tagger_resumes_and_frozen_features_need_their_layers(tmp_path: Path, source: Path, capsys: Any):
    folder = write_conll(tmp_path / "data")
    config = config_of("ner", folder, ner={"features": "sum_last_four", "bilstm_hidden_size": 4})
    asked = finetune.Request(init=str(source), workdir=str(tmp_path / "work"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "__call__", lambda self: True)
        assert finetune.finetune(config, request=asked) == INTERRUPTED
    assert "stopped at step 0 of 2, state saved; the same command resumes there" in capsys.readouterr().out
    assert run(config, source, tmp_path / "work")["features"] == "sum_last_four"
    shallow = write_source(tmp_path / "shallow")
    with pytest.raises(UserError, match=r"config.ner.features=sum_last_four: .* has 2 layers, at least 4 are needed"):
        run(config, shallow, tmp_path / "other")
    with pytest.raises(
        UserError, match=r"config.ner.features: no such field in config.task=mrpc; it is an option of ner"
    ):
        config_of("mrpc", folder, ner={"features": "last"})


OWN: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "regression": ({"text": "it was good", "label": 2.5}, {}),
    "tags": ({"text": ["the", "film"], "label": ["O", "I-PER"]}, {}),
    "span": ({"text": "was it", "c": CONTEXT, "label": "very good"}, {"text_pair": "c"}),
    "choice": ({"text": "it was", "ends": ["good", "bad", "sad"], "label": 2}, {"choices": "ends"}),
    "multilabel": ({"text": "it was good", "label": ["a", "b"]}, {}),
}


@pytest.mark.soak
@pytest.mark.parametrize("kind", OWN)
def test_own_data_of_every_kind_is_trained_predicted_and_exported(tmp_path: Path, source: Path, kind: str):
    row, options = OWN[kind]
    for name in ("train", "dev", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [row] * 6)
    config = config_of("own", tmp_path, own={"kind": kind, **options}, data={"test_file": "test.jsonl"})
    record = run(config, source, tmp_path / "work", predict_test=True, errors=20)
    assert record["selection"] in record["best"]["metrics"]["test"]
    assert (tmp_path / "work" / "errors-dev.jsonl").exists()
    export_folder(load_pretrained(tmp_path / "work"), out=tmp_path / "folder", report=lambda line: None)
    assert json.loads((tmp_path / "folder" / "config.json").read_text())["architectures"]


@pytest.mark.slow
def test_several_labels_are_learned_exported_and_predicted(tmp_path: Path, source: Path):
    """From a list of labels to HuggingFace's `problem_type`, in the order of the config throughout."""
    several = [[], ["bad"], ["good"], ["bad", "good"]]
    rows = [{"text": f"the film was {' and '.join(words) or 'it'}", "label": words} for words in several * 8]
    for name in ("train", "dev"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    learning: dict[str, Any] = {"optimizer": {"learning_rate": 3e-3}, "train": {"num_epochs": 12.0, "batch_size": 8}}
    config = config_of("own", tmp_path, own={"kind": "multilabel", "labels": "good,bad"}, **learning)
    record = run(config, source, tmp_path / "work", errors=5)
    assert record["best"]["metrics"]["dev"] == {"micro_f1": 1.0, "macro_f1": 1.0, "subset_accuracy": 1.0}
    assert record["constant"] == pytest.approx(2 / 3)  # both, always: precision a half
    assert record["tables"] == {name: {"precision": 1.0, "recall": 1.0, "f1": 1.0} for name in ("good", "bad")}
    assert (tmp_path / "work" / "errors-dev.jsonl").read_text() == ""
    lines = (tmp_path / "work" / "predictions" / "dev" / "own-dev.jsonl").read_text().splitlines()
    assert [sorted(json.loads(line)["prediction"]) for line in lines] == [row["label"] for row in rows]
    trained = load_pretrained(tmp_path / "work")
    export_folder(trained, out=tmp_path / "folder", report=lambda line: None)
    exported = json.loads((tmp_path / "folder" / "config.json").read_text())
    for fields in (trained.label_fields, exported):
        assert fields["problem_type"] == "multi_label_classification"
        assert fields["id2label"] == {"0": "good", "1": "bad"}
    assert exported["architectures"] == ["BertForSequenceClassification"]
    assert "pipeline_tag: text-classification" in (tmp_path / "folder" / "README.md").read_text()
    for model in (tmp_path / "work", tmp_path / "folder"):
        answers = load(model).classify([rows[0]["text"], rows[3]["text"]])
        assert [answer["labels"] for answer in answers] == [[], ["good", "bad"]]
        assert all(share > 0.5 for share in answers[1]["probabilities"].values())
    for row in rows:
        row["label"] = (row["label"] or ["good"])[0]
    for name in ("train", "dev"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    config = config_of("own", tmp_path, own={"labels": "good,bad"})
    with pytest.raises(UserError, match="has a head for multilabel, own is classification: type --init_missing=classi"):
        run(config, tmp_path / "work", tmp_path / "other")


@pytest.mark.slow
def test_new_text_without_labels_is_tagged_and_answered(tmp_path: Path, source: Path):
    """The test set is unlabelled: predicted by the trained model, and no figure of it among the results."""
    tags, squad = tmp_path / "tags", tmp_path / "squad"
    tags.mkdir()
    for name in ("train", "dev"):
        write_jsonl(tags / f"{name}.jsonl", [OWN["tags"][0]] * 4)
        write_squad(squad / f"{name}-v1.1.json", questions=4, impossible=False)
    write_jsonl(tags / "test.jsonl", [{"text": "the film was good"}] * 3)
    qas = [{"id": f"new{i}", "question": "was it"} for i in range(3)]
    (squad / "test.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}]}))
    config = config_of("own", tags, own={"kind": "tags"}, data={"test_file": "test.jsonl"})
    record = run(config, source, tmp_path / "one", predict_test=True)
    assert set(record["best"]["metrics"]) == {"dev"}
    lines = (tmp_path / "one" / "predictions" / "test" / "own-test.txt").read_text().split("\n")
    assert [line.split(" ")[0] for line in lines[:5]] == ["the", "film", "was", "good", ""]
    config = config_of("squad_v1", squad, data={"test_file": "test.json"})
    record = run(config, source, tmp_path / "two", predict_test=True)
    assert set(record["best"]["metrics"]) == {"dev"}
    answers = json.loads((tmp_path / "two" / "predictions" / "test" / "predictions.json").read_text())
    assert set(answers) == {"new0", "new1", "new2"}
    config = config_of("squad_v1", squad, data={"test_file": "test.json", "dev_split": "test"})
    with pytest.raises(UserError, match="the test set of squad_v1 has no labels: give a labeled file"):
        run(config, source, tmp_path / "three")


def test_selecting_on_test_and_holding_out_dev_contradict(tmp_path: Path):
    with pytest.raises(UserError, match=r"dev_fraction=0.1 contradicts config.data.dev_split=test"):
        config_of("swag", tmp_path, data={"dev_fraction": 0.1, "dev_split": "test"})
    config = config_of("swag", tmp_path, data={"dev_split": "test"})
    for task in ("swag", "ner", "own", "squad_v1", "rte"):
        chosen = dataclasses.replace(config, task=task)
        assert finetune.open_config_task(chosen).eval_splits() == ("test",)
