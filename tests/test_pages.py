"""The page of a run holds what the run wrote, needs no other file, and is the same for the same files."""

import json
import re
import sys
from pathlib import Path

import pytest

from bert_jax.errors import UserError
from bert_jax.pages.panels import panels_of_run
from bert_jax.pages.plots import MOST_POINTS, thin
from bert_jax.pages.run_files import read_run
from bert_jax.pages.sections import spread
from bert_jax.reproduction.records import goodput_seconds
from tests.page_runs import finetuning_run, pretraining_run
from tests.runs import run

pytest.importorskip("matplotlib", reason="needs the report extra: pip install -e '.[report]'")

from bert_jax.pages.page import write_page


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretraining_run(tmp_path_factory.mktemp("pages") / "first")


@pytest.fixture(scope="module")
def finetuning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetuning_run(tmp_path_factory.mktemp("pages") / "mrpc")


@pytest.fixture(scope="module")
def page(pretraining: Path) -> str:
    return write_page([pretraining]).read_text()


def captions(text: str) -> list[str]:
    return re.findall(r'<div class="plot"><h3>(.*?)</h3>', text)


def test_a_page_loads_nothing(page: str):
    addresses = set(re.findall(r"""\w+://[^\s"'<>)]+""", page))
    assert all(address.startswith("http://www.w3.org/") for address in addresses), addresses  # names, not loaded
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\((?!#)", page)


def test_the_page_of_pretraining_has_its_curves_and_the_unigram_line(page: str):
    assert captions(page) == [
        "Loss of the masked LM",
        "Accuracy of the masked LM",
        "Bits per byte",
        "Loss that is minimized",
        "Learning rate",
        "Gradient norm",
        "Throughput",
    ]
    assert page.count("unigram (word frequencies)") == 1
    assert page.count("<svg") == 8  # and where time went


def test_the_config_is_shown_as_a_difference_from_the_preset_of_its_shape(page: str):
    config = page[page.index("<h2>Config</h2>") :]
    assert "the model preset tiny" in config
    changed = re.findall(r"<tr><td>([\w.\[\]]+)</td>", config)
    assert "optimizer.learning_rate" in changed
    assert "train.num_steps" in changed
    assert not [name for name in changed if name.startswith("model.")]  # all of it is the preset's


def test_filled_masks_show_what_was_there_and_each_guess(page: str):
    assert "the <mark>[&lt;cat&gt;]</mark> sat on the <mark>[mat]</mark> ." in page
    assert page.count('<span class="wrong">dog</span> <small>25 %</small>') == 4  # one per evaluation
    assert page.count('<span class="right">mat</span> <small>50 %</small>') == 4


def test_the_same_files_give_the_same_page(pretraining: Path, page: str, tmp_path: Path):
    assert write_page([pretraining], out=tmp_path / "again.html").read_text() == page


def test_the_page_of_a_task_has_results_confusion_and_mistakes(finetuning: Path):
    page = write_page([finetuning]).read_text()
    assert "<h2>Results of mrpc</h2>" in page
    assert "<td>b32-lr3e-05-e3</td>" in page
    assert "236</span>" in page
    assert "He said &lt;b&gt;so&lt;/b&gt;." in page
    assert captions(page)[:2] == ["On dev: accuracy", "On dev: f1"]
    assert "240" not in page  # seconds: two runs of 80
    assert "2 min 40 s" in page


def test_a_page_is_drawn_while_there_are_no_results_yet(finetuning: Path, tmp_path: Path):
    folder = finetuning_run(tmp_path / "begun")
    (folder / "results.json").unlink()
    assert "On dev: accuracy" in write_page([folder]).read_text()


def test_the_page_of_a_benchmark_has_the_results_of_its_tasks(finetuning: Path, tmp_path: Path):
    folder = tmp_path / "glue"
    task = finetuning_run(folder / "mrpc")
    (task / "config.json").rename(folder / "config.json")  # that of the benchmark
    results = {"tasks": {"mrpc": {"dev": {"accuracy": 0.8}}}, "glue": {"average": 0.8, "numbers": {}, "of": 9}}
    (folder / "results.json").write_text(json.dumps(results))
    page = write_page([folder]).read_text()
    assert "<td>mrpc</td><td>dev</td><td>accuracy</td>" in page
    assert "<h2>Curves</h2>" not in page
    assert "On dev: accuracy" in write_page([task]).read_text()


def test_damaged_and_cut_lines_are_left_out(tmp_path: Path):
    folder = pretraining_run(tmp_path / "cut", steps=20)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"step": 21, "train/lo')
    (folder / "goodput.json").write_text("{")
    assert "Loss of the masked LM" in write_page([folder]).read_text()


@pytest.mark.parametrize(
    "goodput",
    [[], {}, {"seconds": 5}, {"seconds": {"other": "x"}}, {"seconds": {"useful": float("nan"), "compile": -5}}],
    ids=str,
)
def test_a_damaged_record_of_wall_time_is_as_good_as_none(tmp_path: Path, goodput: object):
    folder = pretraining_run(tmp_path / "run", steps=20)
    (folder / "goodput.json").write_text(json.dumps(goodput))
    assert "Loss of the masked LM" in write_page([folder]).read_text()
    assert goodput_seconds(folder) == 0.0


@pytest.mark.parametrize(
    "damage",
    [
        {"step": "x"},
        {"samples": [{"text": [], "masks": []}]},
        {"samples": [{"text": ["a", "b"], "masks": [{"answer": "c", "guess": "c", "probability": "x"}]}]},
        {"samples": [5]},
    ],
    ids=str,
)
def test_damaged_filled_masks_are_left_out(tmp_path: Path, damage: dict[str, object]):
    folder = pretraining_run(tmp_path / "run", steps=20)
    whole = write_page([folder]).read_text()
    with (folder / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"step": 30, "samples": []} | damage) + "\n")
    assert write_page([folder]).read_text() == whole


def test_the_command_compares_runs_by_curves_and_by_what_their_configs_differ_in(pretraining: Path, tmp_path: Path):
    other = pretraining_run(tmp_path / "second", rate=5e-4)
    out = tmp_path / "comparison.html"
    command = [
        sys.executable,
        "-m",
        "bert_jax.report",
        f"--workdir={pretraining}",
        f"--workdir={other}",
        f"--out={out}",
    ]
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    page = out.read_text()
    config = page[page.index("<h2>Config</h2>") : page.index("<h2>Where")]
    assert re.findall(r"<tr><td>([\w.\[\]]+)</td><td>(.*?)</td><td>(.*?)</td></tr>", config) == [
        ("optimizer.learning_rate", "0.0002", "0.0005")
    ]
    assert "Held-out loss" in captions(page)
    assert page.count(">first<") == page.count(">second<") > 3


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "--workdir is missing"),
        (("--workdir=nowhere",), "nowhere: contains no config.json"),
        (("--workdir=.", "--out=no/such/page.html"), "there is no folder"),
    ],
)
def test_bad_flags_are_one_line(flags: tuple[str, ...], says: str, tmp_path: Path):
    done = run([sys.executable, "-m", "bert_jax.report", *flags], cwd=tmp_path)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert says in done.stderr


def test_without_matplotlib_the_extra_is_named(pretraining: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'bert_jax\[report\]'"):
        write_page([pretraining])


def test_long_curves_are_thinned_to_means_and_keep_their_last_step():
    points = [(float(step), float(step % 2)) for step in range(1, 10_001)]
    thinned = thin(points)
    assert len(thinned) <= MOST_POINTS
    assert thinned[-1][0] == 10_000
    assert all(0.4 < value < 0.6 for _, value in thinned)
    assert thin(points[:5]) == points[:5]


def test_evaluations_are_spread_from_the_first_to_the_last():
    assert spread(list(range(100)), most=4) == [0, 33, 66, 99]
    assert spread([1, 2], most=4) == [1, 2]


def test_a_left_to_right_run_has_the_same_panels_under_its_own_name(pretraining: Path, tmp_path: Path):
    folder = pretraining_run(tmp_path / "causal", steps=10)
    file = folder / "metrics.jsonl"
    file.write_text(file.read_text().replace("/mlm_", "/clm_"))
    panels = {panel.title: panel for panel in panels_of_run(read_run(folder).logs[0])}
    assert [line.label for line in panels["Loss of the left-to-right LM"].lines] == [
        "training",
        "held out",
        "unigram (word frequencies)",
    ]
    assert json.loads(file.read_text().splitlines()[0])["train/clm_loss"] == 6.0
