"""The reference is complete: every config field, flag and metric has a meaning there, once."""

import dataclasses
import re
from collections import Counter

import pytest

from bert_jax import __main__ as entry
from bert_jax.config import Config, builder
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.reproduction import ScaleConfig, ScaledTask
from bert_jax.runs.goodput import KINDS
from bert_jax.tasks import glue
from docs import reference_pages as reference
from tests.docs_commands import PAGES, ROOT
from tests.documented import documented_metrics

CONFIGS = (Config, FinetuneConfig)


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_config_field_is_there_once_with_a_meaning(cls: type):
    rows = [row for section in reference.sections(cls) for row in section.rows]
    assert Counter(row.name for row in rows) == Counter(builder.field_names(cls))
    assert [row.name for row in rows if len(row.info.doc.split()) < 2] == []


def test_every_field_of_a_scale_is_there_or_is_a_config_with_its_own_page():
    names = {row.name for section in reference.scale_sections() for row in section.rows}
    own = {item.name for item in dataclasses.fields(ScaleConfig)} - {"pretraining", "tasks"}
    of_task = {f"tasks[0].{item.name}" for item in dataclasses.fields(ScaledTask)} - {"tasks[0].config"}
    assert names == own | of_task
    assert [r.name for s in reference.scale_sections() for r in s.rows if len(r.info.doc.split()) < 2] == []


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_group_of_fields_says_what_it_holds(cls: type):
    assert [section.name for section in reference.sections(cls) if len(section.doc.split()) < 3] == []


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_generated_pages_are_whole_tables(name: str):
    text = reference.PAGES[name]()
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_a_range_is_written_as_in_mathematics():
    info = builder.info
    fields = builder.leaf_fields(Config)
    assert reference.values_of(info(fields["model.hidden_dropout_prob"])) == "0 ≤ x < 1"
    assert reference.values_of(info(fields["train.num_steps"])) == "x > 0"
    assert reference.values_of(info(fields["mesh.data"])) == "x ≥ 1, or `-1`: the remaining devices"
    assert reference.values_of(info(fields["recipe"])) == "`modern`, `original`"


@pytest.mark.parametrize("command", entry.COMMANDS)
def test_every_flag_has_a_help_text(command: str):
    flags = reference.command_flags(command)
    assert flags
    assert [name for name, flag in flags.items() if len((flag.help or "").split()) < 2] == []


def test_reading_the_flags_of_a_command_leaves_the_process_as_it_was():
    from absl import flags

    before = {name: id(flags.FLAGS[name]) for name in flags.FLAGS}
    reference.command_flags("train")
    assert {name: id(flags.FLAGS[name]) for name in flags.FLAGS} == before


def test_metrics_of_goodput_and_of_glue_are_described():
    expected = {f"perf/{kind}_seconds" for kind in KINDS}
    expected |= {f"eval/{metric}" for spec in glue.TASKS.values() for metric in spec.metrics}
    assert expected <= documented_metrics()


def test_a_metric_is_described_once():
    text = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| `(\S+)` \| ", text, flags=re.MULTILINE)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_of_the_repository_are_true(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        path = (page.parent / target).resolve()
        assert path.exists(), f"{page.name}: {target}"
