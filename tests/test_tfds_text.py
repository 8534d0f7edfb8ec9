import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from bert_jax.crc32c import masked_crc32c
from bert_jax.data import tfds_builders, tfds_text
from bert_jax.data.documents import ReadReport, find_sources, read_source
from bert_jax.errors import UserError
from tests.texts import PARAGRAPHS, read


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()

    class SmallText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "text": tfds.features.Text(),
                "title": tfds.features.Text(),
                "id": tfds.features.Scalar(np.int32),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))  # type: ignore

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(300), "test": self._generate_examples(5)}

        def _generate_examples(self, count: int):
            for index in range(count):
                text = f"Document {index} begins. {PARAGRAPHS[0]}\n\n{PARAGRAPHS[1]}\n"
                yield index, {"text": text, "title": f"The title is {index}.", "id": index}

    folder = tmp_path_factory.mktemp("tfds")
    builder = SmallText(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return folder


def test_tfds_directory_is_read_once_in_ranges(tfds_folder: Path, monkeypatch: pytest.MonkeyPatch):
    item = f"tfds:{tfds_folder}/small_text/1.0.0"
    [whole] = find_sources(item)
    expected = list(read_source(whole, split_sentences=False))
    assert len(expected) == 300
    assert {int(document.sentences[0].split()[1]) for document in expected} == set(range(300))
    assert all(document.sentences[1] == PARAGRAPHS[1] for document in expected)
    monkeypatch.setattr(tfds_text, "RANGE_BYTES", 10_000)
    monkeypatch.setattr(tfds_text, "_BATCH_BYTES", 1000)
    sources = find_sources(item)
    assert len(sources) > 5
    assert len({source.name for source in sources}) == len(sources)
    report = ReadReport()
    ranges = [d for source in sources for d in read_source(source, split_sentences=False, report=report)]
    assert [document.sentences for document in ranges] == [document.sentences for document in expected]
    assert len({document.key for document in ranges}) == report.documents == 300
    assert abs(sum(source.size for source in sources) - whole.size) < len(sources)
    assert str(tfds_folder) not in ranges[0].key  # keys do not change with the place


def test_tfds_feature_can_be_named(tfds_folder: Path):
    found = read(f"tfds:{tfds_folder}/small_text/1.0.0:title")
    assert {sentence for document in found for sentence in document.sentences} == {
        f"The title is {index}." for index in range(300)
    }
    for feature, what in (("body", "does not exist"), ("id", "is not text")):
        with pytest.raises(UserError, match=rf"feature '{feature}' .* {what}: .*\(text features: text, title\)"):
            find_sources(f"tfds:{tfds_folder}/small_text/1.0.0:{feature}")


def test_tfds_name_is_read_without_tensorflow(tfds_folder: Path):
    code = (
        "import sys; from bert_jax.data.documents import read_documents;"
        "print(sum(1 for _ in read_documents('tfds:small_text')), 'tensorflow' in sys.modules)"
    )
    environment = os.environ | {"TFDS_DATA_DIR": str(tfds_folder), "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["300", "False"]


def test_tfds_data_set_that_cannot_be_read_is_refused(tfds_folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"no TFDS data set 'no_such_set' .*TFDS_DATA_DIR"):
        find_sources("tfds:no_such_set")
    with pytest.raises(UserError, match=r"no TFDS data set '.*' .*dataset_info\.json"):
        find_sources(f"tfds:{tmp_path}")
    folder = shutil.copytree(tfds_folder / "small_text" / "1.0.0", tmp_path / "small_text" / "1.0.0")
    info = folder / "dataset_info.json"
    original = info.read_text()
    info.write_text(original.replace("array_record", "riegeli"))
    with pytest.raises(UserError, match=r"not in a random-access format|cannot be|no TFDS data set"):
        find_sources(f"tfds:{folder}")
    info.write_text(original)
    [source] = find_sources(f"tfds:{folder}")
    [shard] = folder.glob("*train*")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError, match=r"TFDS data set '.*' is damaged .*prepare it again"):
        list(read_source(source))


@pytest.fixture
def tfrecord_folder(tfds_folder: Path, tmp_path: Path) -> Path:
    """Return the data set with its records in TFRecord files, TFDS's default format."""
    folder = shutil.copytree(tfds_folder / "small_text" / "1.0.0", tmp_path / "small_text" / "1.0.0")
    reader = ArrayRecordReader(str(next(folder.glob("*train*"))))
    records = reader.read_all()
    reader.close()
    for file in folder.glob("*.array_record*"):
        file.unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = split["filepathTemplate"].replace("array_record", "tfrecord")
        if split["name"] == "train":
            split["shardLengths"] = ["100", "200"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for number, part in enumerate((records[:100], records[100:])):
        (folder / f"small_text-train.tfrecord-{number:05d}-of-00002").write_bytes(b"".join(map(framed, part)))
    return folder


def framed(content: bytes) -> bytes:
    """Return a record as a TFRecord file stores it."""
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked_crc32c(length)) + content + struct.pack("<I", masked_crc32c(content))


def test_tfrecord_files_hold_the_same_documents(tfds_folder: Path, tfrecord_folder: Path):
    sources = find_sources(f"tfds:{tfrecord_folder}")
    assert [source.name[-9:] for source in sources] == ["[train:0]", "[train:1]"]
    expected = [document.sentences for document in read(f"tfds:{tfds_folder}/small_text/1.0.0")]
    assert [document.sentences for document in read(f"tfds:{tfrecord_folder}")] == expected
    assert len(expected) == 300


@pytest.mark.parametrize("position", [0, 9, 40, -2])
def test_a_damaged_tfrecord_file_is_refused(tfrecord_folder: Path, position: int):
    file = tfrecord_folder / "small_text-train.tfrecord-00001-of-00002"
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"tfrecord-00001-of-00002 is damaged or cut short: .* prepare"):
        read(f"tfds:{tfrecord_folder}")


def test_a_data_set_by_name_is_prepared_on_first_use_after_its_size_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import tensorflow_datasets as tfds

    class FirstUse(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        fails = False

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()})
            )  # type: ignore

        def _split_generators(self, dl_manager):
            if self.fails:
                raise ConnectionError("Name or service not known")
            return {"train": iter([(0, {"text": PARAGRAPHS[0]})])}

        def _generate_examples(self):
            raise AssertionError

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    builder = FirstUse(data_dir=str(tmp_path))
    lines: list[str] = []
    FirstUse.fails = True
    with pytest.raises(UserError, match=r"cannot be prepared \(ConnectionError: Name .*config\.data\.input='texts/"):
        tfds_builders.prepare(builder, path="first_use", report=lines.append)
    FirstUse.fails = False
    tfds_builders.prepare(FirstUse(data_dir=str(tmp_path)), path="first_use", report=lines.append)
    assert lines[1].startswith(f"tfds:first_use/1.0.0 is not in {tmp_path}/first_use/1.0.0 yet: generating it")
    folder = tmp_path / "first_use" / "1.0.0"
    assert [document.sentences[0] for document in read(f"tfds:{folder}", split_sentences=False)] == [PARAGRAPHS[0]]
    tfds_builders.prepare(tfds.builder_from_directory(str(folder)), path="first_use", report=lines.append)
    assert len(lines) == 2


def test_without_a_network_the_way_to_give_text_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds_builders, "_has_network", lambda: False)
    with pytest.raises(
        UserError, match=r"there is no network: set TFDS_DATA_DIR .*config\.data\.input='texts/\*\.txt'"
    ):
        find_sources("tfds:wikipedia/20230601.simple")


def test_wikipedia_is_known_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert tfds_builders.open_builder("wikipedia/20230601.en").info.full_name == "wikipedia/20230601.en/1.0.0"
