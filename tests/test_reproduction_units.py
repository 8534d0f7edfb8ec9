"""A unit of work is found by its content: config, data and code, not by where or how it runs."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from bert_jax.reproduction import code
from bert_jax.reproduction.finetuning import FinetuningWork
from bert_jax.reproduction.pairs import PairsWork
from bert_jax.reproduction.pretraining import PretrainingWork
from bert_jax.reproduction.resolve import Resolver
from bert_jax.reproduction.tables import TABLES
from bert_jax.reproduction.work import Work
from tests.finetune_data import write_jsonl
from tests.reproduction_scale import request, scale, write_all


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_all(tmp_path / "data")


def pretraining(data: Path, **changes: object) -> PretrainingWork:
    config = scale().pretraining
    located = dataclasses.replace(config.data, input=str(data / "text"))
    return PretrainingWork(dataclasses.replace(config, data=located, **changes), title="a model")


def finetuning(data: Path, *, task: str = "sst2", seeds: int = 2) -> FinetuningWork:
    table = TABLES["5" if task != "ner" else "7"]
    cells = Resolver(request(data, seeds=seeds)).cells(table)
    unit = next(cell.unit for cell in cells if cell.unit and cell.column.key == task)
    assert isinstance(unit, FinetuningWork)
    return unit


def test_what_does_not_determine_a_result_is_not_in_its_digest(data: Path):
    unit = pretraining(data)
    config = unit.config
    for name, changes in (("checkpoint", {"every": 3}), ("mesh", {"fsdp": 2}), ("log", {"every": 1})):
        other = dataclasses.replace(getattr(config, name), **changes)
        assert pretraining(data, **{name: other}).digest == unit.digest


def test_config_and_text_are_in_the_digest(data: Path):
    unit = pretraining(data)
    assert pretraining(data, seed=1).digest != unit.digest
    with (data / "text" / "part0.txt").open("a") as file:
        file.write("One more sentence of the corpus.\n")
    assert pretraining(data).digest != unit.digest


def test_data_may_move(data: Path, tmp_path: Path):
    def digests(folder: Path) -> list[str]:
        return [pretraining(folder).digest, *(finetuning(folder, task=task).digest for task in ("sst2", "ner"))]

    before = digests(data)
    assert digests(Path(shutil.copytree(data, tmp_path / "elsewhere"))) == before


def test_examples_are_in_the_digest(data: Path, monkeypatch: pytest.MonkeyPatch):
    before = finetuning(data).digest
    file = data / "sst2" / "dev.tsv"
    file.write_text(file.read_text().replace("film", "play", 1))
    monkeypatch.setattr("bert_jax.reproduction.finetuning._FILES", {})
    assert finetuning(data).digest != before


def test_more_seeds_are_more_runs_of_the_same_unit(data: Path):
    two, three = finetuning(data, seeds=2), finetuning(data, seeds=3)
    assert two.digest == three.digest
    result = {"runs": [{"seed": 0}, {"seed": 1}]}
    assert two.covers(result)
    assert not three.covers(result)
    assert three.flops() == pytest.approx(1.5 * two.flops())


def test_a_test_set_of_names_is_another_unit(data: Path, monkeypatch: pytest.MonkeyPatch):
    with_test = finetuning(data, task="ner")
    assert "test" in with_test.files.splits
    (data / "ner" / "eng.testb").unlink()
    monkeypatch.setattr("bert_jax.reproduction.finetuning._FILES", {})
    without = finetuning(data, task="ner")
    assert "test" not in without.files.splits
    assert without.digest != with_test.digest


def test_code_that_computes_is_in_the_digest_and_its_documentation_is_not(data: Path, monkeypatch: pytest.MonkeyPatch):
    unit = pretraining(data)
    digest, identity = unit.digest, unit.identity
    monkeypatch.setattr("bert_jax.reproduction.work.code_digest", lambda packages: "other")
    assert pretraining(data).digest != digest
    assert pretraining(data).identity == identity
    source = '"""One."""\n\ndef f(x):\n    """Two."""\n    return x + 1  # three\n'
    assert code.normalized(source) == code.normalized("def f(x):\n    'Other.'\n    return (x + 1)\n").replace(
        "def", "pass\n\ndef", 1
    )
    assert code.normalized(source) != code.normalized(source.replace("1", "2"))


def test_minimal_pairs_are_the_first_of_each_paradigm(data: Path, tmp_path: Path):
    rows = [{"sentence_good": f"g{n}", "sentence_bad": f"b{n}", "UID": f"u{n % 2}"} for n in range(10)]
    file = write_jsonl(tmp_path / "pairs.jsonl", rows)
    two = PairsWork(file, limit=2, model=pretraining(data), step=20, title="a model")
    every = PairsWork(file, limit=0, model=pretraining(data), step=20, title="a model")
    assert every.flops() == pytest.approx(2.5 * two.flops())
    assert every.digest != two.digest


def test_the_code_of_every_kind_is_in_folders_that_exist():
    root = Path(code.__file__).parents[1]
    for kind in (PretrainingWork, FinetuningWork, PairsWork):
        assert kind.packages
        assert all((root / name).is_dir() for name in kind.packages)
        assert issubclass(kind, Work)
