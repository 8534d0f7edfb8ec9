"""A manifest grows with the number of input files, and one that cannot be read is one line."""

from pathlib import Path

import pytest

from bert_jax import json_files
from bert_jax.data import manifest
from bert_jax.errors import UserError
from bert_jax.files import write_json


def test_a_manifest_may_be_larger_than_other_json_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    value = manifest._LATER | {"inputs": {f"{number}.txt": "1 bytes" for number in range(100)}}
    write_json(tmp_path / "manifest.json", value)
    monkeypatch.setattr(json_files, "MAX_JSON_BYTES", 100)
    manifest.check_manifest(tmp_path, value)
    monkeypatch.setattr(manifest, "_MAX_BYTES", 100)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read \(it is larger.*choose another --out") as error:
        manifest.check_manifest(tmp_path, value)
    assert "\n" not in str(error.value)


def test_all_differences_are_named(tmp_path: Path):
    value = manifest._LATER | {"inputs": {"a.txt": "1 bytes"}, "seed": 1}
    write_json(tmp_path / "manifest.json", value)
    (tmp_path / manifest.DATASET_NAME).mkdir()
    (tmp_path / manifest.DATASET_NAME / "a.array_record-0").touch()
    now = value | {"inputs": {}, "seed": 2, "pack": True}
    with pytest.raises(UserError) as error:
        manifest.check_manifest(tmp_path, now)
    for part in ("seed=1, now it is 2", "pack=False, now it is True", "other text: a.txt is not in the input now"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"a.txt": "2"}, "a.txt differs now"),
        ({"a.txt": "1", "b.txt": "1"}, "b.txt was not in the input (built from a.txt; the input now is a.txt and 1 "
         "more file)"),
        ({"c.txt": "1"}, "a.txt is not in the input now (built from a.txt; the input now is c.txt)"),
        ({"a.txt": "2", "b.txt": "1"}, "a.txt differs now (built from a.txt; the input now is a.txt and 1 more file)"),
    ],
)  # fmt: skip
def test_other_text_is_named_without_a_claim_about_the_disk(now: dict[str, str], says: str):
    assert manifest._difference({"a.txt": "1"}, now) == says
