"""Damaged files of tasks and predictions: read, or one line that names the file; never another exception.

50 files a kind in the default run, `pytest -m soak` makes 500.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cases import task

from bert_jax.config.task_options import OwnOptions
from bert_jax.errors import UserError
from bert_jax.tasks.scoring import score_predictions
from tests.test_corpus_variants import PACKERS
from tests.test_damaged_files import damage

TEXTS = [("good film", "yes"), ('a "bad", sad film', "no"), ("the film\twas", "yes"), ("naïve café 本", "no")] * 2
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "A river is long.",
                    "qas": [
                        {
                            "id": str(number),
                            "question": "What is long?",
                            "is_impossible": number % 2 == 1,
                            "answers": [] if number % 2 else [{"text": "river", "answer_start": 2}],
                        }
                        for number in range(4)
                    ],
                }
            ],
        }
    ],
}
CONLL = "-DOCSTART- -X- O O\n\n" + "the x x O\ngood x x I-PER\nfilm x x I-PER\nwas x x O\n\n" * 4


def quoted(delimiter: str) -> str:
    rows = [("text", "label"), *TEXTS]
    lines = [delimiter.join('"' + field.replace('"', '""') + '"' for field in row) for row in rows]
    return "\n".join(lines) + "\n"


FILES = {
    "csv": quoted(","),
    "tsv": quoted("\t"),
    "jsonl": "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in TEXTS),
    "json": json.dumps([{"text": text, "label": label} for text, label in TEXTS], indent=1),
    "squad": json.dumps(SQUAD),
    "conll": CONLL,
}


def reader(kind: str, folder: Path) -> tuple[Path, Callable[[], str]]:
    """Write the right files of a kind; return the one to damage, and what reads the folder."""
    if kind == "squad":
        names, read = ("train-v2.0.json", "dev-v2.0.json"), lambda: task("squad_v2", folder)
    elif kind == "conll":
        names, read = ("train.txt", "dev.txt"), lambda: task("ner", folder)
    else:
        names, read = (f"train.{kind}", f"dev.{kind}"), lambda: task("own", folder, own=OwnOptions())
    for name in names:
        (folder / name).write_text(FILES[kind], encoding="utf-8")
    return folder / names[0], read


@pytest.mark.parametrize("pack", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("kind", FILES)
def test_compressed_files_of_tasks_are_found_and_read(tmp_path: Path, kind: str, pack: str):
    file, read = reader(kind, tmp_path)
    expected = read()
    for path in (file, *tmp_path.glob(f"dev*{file.suffix}")):
        path.with_name(path.name + pack).write_bytes(PACKERS[pack](path.read_bytes()))
        path.unlink()
    assert read().replace(pack, "") == expected


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_of_tasks_are_read_or_one_line(tmp_path: Path, kind: str, count: int):
    file, read = reader(kind, tmp_path)
    assert read()
    whole = file.read_bytes()
    generator = np.random.default_rng(zlib.crc32(kind.encode()))
    refused: list[str] = []
    for _ in range(count):
        file.write_bytes(damage(whole, generator))
        try:
            read()
        except UserError as error:
            refused.append(str(error))
    # What is damaged may leave a file that is right in itself, such as one with a single label.
    assert all(str(tmp_path) in line or "train" in line or "label" in line for line in refused), refused
    assert all(len(line) < 1500 for line in refused)
    assert refused


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", ["data", "predictions", "null_odds"])
def test_damaged_files_of_scores_are_read_or_one_line(tmp_path: Path, kind: str, count: int):
    right = {
        "data": json.dumps(SQUAD),
        "predictions": json.dumps({str(number): "river" for number in range(4)}),
        "null_odds": json.dumps({str(number): 0.5 for number in range(4)}),
    }
    files = {name: tmp_path / f"{name}.json" for name in right}
    for name, text in right.items():
        files[name].write_text(text)
    generator = np.random.default_rng(zlib.crc32(kind.encode()))
    refused: list[str] = []
    for _ in range(count):
        files[kind].write_bytes(damage(right[kind].encode(), generator))
        try:
            score_predictions(
                task="squad_v2",
                predictions=str(files["predictions"]),
                data=str(files["data"]),
                null_odds=str(files["null_odds"]),
            )
        except UserError as error:
            refused.append(str(error))
    assert all(str(tmp_path) in line and len(line) < 1500 for line in refused), refused
    assert len(refused) > count // 2
