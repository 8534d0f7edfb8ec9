"""The paper's tables as data: complete, consistent, and shared where the paper's experiments share a model."""

from pathlib import Path

import pytest

from bert_jax.config.reproduction import load_scale, scales
from bert_jax.errors import UserError
from bert_jax.reproduction.command import tables_named
from bert_jax.reproduction.experiments import TASK, Table
from bert_jax.reproduction.models import MODELS
from bert_jax.reproduction.pretraining import PretrainingWork
from bert_jax.reproduction.resolve import Cell, Resolver, columns_of, in_order, rows_of
from bert_jax.reproduction.tables import COLUMNS, TABLES
from tests import reproduction_scale
from tests.reproduction_scale import request, write_all


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def resolver(data: Path) -> Resolver:
    return Resolver(request(data))


def digests(resolver: Resolver, name: str, *, column: str) -> dict[str, str]:
    """Return the digest of each row's unit in a column."""
    cells = resolver.cells(TABLES[name])
    return {cell.row.title: cell.unit.digest for cell in cells if cell.unit and cell.column.key == column}


def missing(cells: list[Cell], title: str) -> set[str]:
    return {cell.missing for cell in cells if cell.row.title == title}


def test_all_tables_of_the_contract_are_there():
    assert list(TABLES) == [*"12345678", "figure5"]


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_rows_name_models_and_values_of_columns_that_exist(table: Table):
    keys = {column.key for column in table.columns}
    titles = [row.title for row in table.rows]
    assert len(titles) == len(set(titles))
    for row in table.rows:
        assert set(row.paper) <= keys
        assert row.model or row.paper
        assert all(name in MODELS for name in row.model.split(",") if name)


def test_the_mixes_of_table_8_are_those_of_the_paper():
    rows = TABLES["8"].rows
    assert rows[4].title == "MASK 0 %, SAME 20 %, RND 80 %"
    assert MODELS[rows[4].model].changes == {
        "masking.mask_share": 0.0,
        "masking.same_share": 0.2,
        "masking.random_share": 0.8,
    }
    assert rows[4].paper == {"mnli": 83.7, "ner": 94.8, "ner_features": 94.6}


@pytest.mark.parametrize("name", scales())
def test_a_packaged_scale_is_valid_for_every_table(name: str):
    title, scale = load_scale(name)
    assert title == name
    for table in TABLES.values():
        assert columns_of(table, scale=scale)
        assert rows_of(table, scale=scale)
    assert scale.notes


def test_the_paper_s_scale_has_every_task_and_the_paper_s_models():
    _, scale = load_scale("paper")
    needed = {column.task for column in COLUMNS.values() if column.kind == TASK}
    assert {task.name for task in scale.tasks} == needed
    model = scale.pretraining.model
    assert (model.num_hidden_layers, model.hidden_size, scale.pretraining.train.num_steps) == (12, 768, 1_000_000)
    assert not scale.replacements


def test_tables_share_the_models_that_are_the_same(resolver: Resolver):
    base = digests(resolver, "5", column="perplexity")["BERT-Base"]
    assert digests(resolver, "6", column="perplexity")["L=12, H=768, A=12"] == base
    assert digests(resolver, "8", column="perplexity")["MASK 80 %, SAME 10 %, RND 10 %"] == base
    tuned = digests(resolver, "5", column="sst2")["BERT-Base"]
    assert digests(resolver, "figure5", column="sst2")["Masked LM (BERT-Base), 100% of the steps"] == tuned


def test_different_rows_are_different_runs(resolver: Resolver):
    of_sizes = digests(resolver, "6", column="perplexity")
    of_mixes = digests(resolver, "8", column="perplexity")
    of_features = digests(resolver, "7", column="ner")
    for found in (of_sizes, of_mixes, of_features):
        assert len(set(found.values())) == len(found)


def test_every_kind_of_model_is_a_run_that_its_program_accepts(resolver: Resolver):
    units = [unit for name in ("1", "5") for unit in in_order(resolver.cells(TABLES[name]))]
    models = {unit.title: unit.flops() for unit in units if isinstance(unit, PretrainingWork)}
    assert {"pre-train No NSP", "pre-train LTR & No NSP", "pre-train LSTM language model, right to left"} <= set(models)
    assert all(flops > 0 for flops in models.values()), models


def test_units_come_after_those_that_they_need(resolver: Resolver):
    units = in_order(resolver.cells(TABLES["6"]))
    position = {unit.digest: index for index, unit in enumerate(units)}
    assert all(position[needed.digest] < position[unit.digest] for unit in units for needed in unit.needs)
    assert len(position) == len(units)


def test_a_curve_s_checkpoints_are_kept_and_change_no_digest(data: Path):
    early = Resolver(request(data)).cells(TABLES["figure5"])[0].unit
    assert early is not None
    model = early.needs[0]
    assert isinstance(model, PretrainingWork)
    assert (early.content()["step"], model.config.checkpoint.every, model.config.checkpoint.keep_every) == (8, 4, 4)
    whole = Resolver(request(data, points=(1.0,))).cells(TABLES["figure5"])[0].unit
    assert whole is not None
    assert whole.needs[0].digest == model.digest


def test_what_cannot_be_run_has_a_reason(data: Path):
    cells = Resolver(request(data)).cells(TABLES["5"])
    assert missing(cells, "BERT-Base") >= {"the scale few has no task qnli", "the scale few has no task squad_v1"}
    absent = missing(Resolver(request(data / "elsewhere")).cells(TABLES["5"]), "BERT-Base")
    assert len(absent) == 1
    assert f"{data}/elsewhere/text" in absent.pop()


def test_a_wrong_table_and_a_wrong_scale_are_one_line():
    with pytest.raises(UserError, match="--table=9: choose from 1, 2"):
        tables_named("9")
    with pytest.raises(UserError, match="--scale=huge: choose one of paper, small, tiny"):
        load_scale("huge")
    assert [table.name for table in tables_named("5,figure5,5")] == ["5", "figure5"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": ("L-1_H-32_A-2",)}, "config.sizes has 1 shapes"),
        ({"points": (0.03,)}, "config.points: 0.03 of 20 steps"),
        ({"replacements": ("mnli",)}, "write OLD=NEW"),
        ({"large": "huge"}, "model preset 'huge'"),
    ],
)
def test_a_wrong_value_of_a_scale_is_one_line(changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        reproduction_scale.scale(**changes)


def test_a_point_that_the_paper_does_not_have_is_one_line(data: Path):
    with pytest.raises(UserError, match=r"config.points: 0.5: choose from 0.03, 0.05, 0.1"):
        Resolver(request(data, points=(0.5, 1.0))).cells(TABLES["figure5"])


def test_a_column_that_does_not_exist_is_one_line(data: Path):
    with pytest.raises(UserError, match="the scale names the column 'speed': choose one of mnli"):
        Resolver(request(data, measures=("speed",))).cells(TABLES["5"])
