"""TF1 checkpoints: read without TensorFlow, every variable accounted for, nothing damaged let through."""

import json

import numpy as np
import pytest
from source_helpers import assert_same_params, flat, random_source
from tf1_writer import snappy, table, write_checkpoint

from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.sstable import TableError, decompress_snappy, read_table
from bert_jax.convert.tf1 import read_bundle
from bert_jax.crc32c import crc32c
from bert_jax.errors import UserError
from bert_jax.model.architectures import ARCHITECTURES
from bert_jax.model.parameter_names import to_external

NAMES = ARCHITECTURES["bert"].names


def tf1_tensors(source, *, adam: bool = True) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for entry in NAMES.of(source.parts):
        tensors |= dict(to_external(entry, flat(source)[entry.flax], side="tf1"))
    if adam:
        tensors |= {f"{name}/adam_{slot}": array * 0 for name, array in list(tensors.items()) for slot in "mv"}
        tensors["global_step"] = np.array(7, np.int64)
    return tensors


def write_release(folder, source, **options) -> None:
    """Write what a released archive holds; its activation is called gelu and is the tanh form."""
    model = source.model
    fields = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    fields += ("max_position_embeddings", "type_vocab_size", "hidden_dropout_prob", "initializer_range")
    config = {name: getattr(model, name) for name in fields} | {"hidden_act": "gelu"}
    (folder / "bert_config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in source.tokenizer.pieces))
    write_checkpoint(folder / "bert_model.ckpt", tf1_tensors(source), **options)


def test_crc32c_has_the_published_check_values():
    # RFC 3720, appendix B.4, and the usual check string.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


@pytest.mark.parametrize("size", [1, 2047, 2048, 4095, 4096, 4097, 100_003])
def test_crc32c_of_a_whole_is_that_of_its_parts(size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    slow = 0
    for start in range(0, size, 701):  # below two lanes each: the path that goes byte by byte
        slow = crc32c(data[start : start + 701], initial=slow)
    assert crc32c(data) == slow


def test_crc32c_joins_chunks(monkeypatch):
    data = np.random.default_rng(0).integers(0, 256, 50_000, np.uint8)
    whole = crc32c(data)
    monkeypatch.setattr("bert_jax.crc32c._CHUNK", 10_000)
    assert crc32c(data) == whole


def test_shared_checkpoint_is_imported_and_every_variable_accounted_for(shared_data):
    folder = shared_data / "checkpoints" / "keras_bert_tf1_test_checkpoint"
    source = load_pretrained(folder / "bert_model.ckpt")
    assert (source.kind, source.architecture) == ("tf1", "BertForPreTraining")
    assert source.model.hidden_act == "gelu_new"
    assert source.tokenizer is not None
    assert source.tokenizer.vocab_size == source.model.vocab_size == 15
    variables = read_bundle(folder / "bert_model.ckpt")
    weights = {name for name in variables if not name.endswith(("adam_m", "adam_v", "global_step"))}
    expected = {name for entry in NAMES.of(source.parts) for name in entry.names(side="tf1", num_layers=2)}
    assert weights == expected
    # An independent look at one tensor: its bytes stand in the data file in the order of the names.
    data = (folder / "bert_model.ckpt.data-00000-of-00001").read_bytes()
    words = source.params["encoder"]["embeddings"]["word_embeddings"]
    assert words.astype("<f4").tobytes() in data
    assert source.params["next_sentence"]["dense"]["kernel"].T.astype("<f4").tobytes() in data


@pytest.mark.parametrize("named", ["", "bert_model.ckpt", "bert_model.ckpt.index", "bert_model.ckpt.meta"])
def test_checkpoint_is_found_by_prefix_folder_or_one_of_its_files(shared_data, named):
    folder = shared_data / "checkpoints" / "keras_bert_tf1_test_checkpoint"
    assert load_pretrained(folder / named).kind == "tf1"


@pytest.mark.parametrize(("preset", "shards", "compress"), [("tiny", 1, False), ("tiny", 3, True), ("mini", 1, True)])
def test_larger_checkpoints_come_in_exactly(tmp_path, preset, shards, compress):
    source = random_source(preset)
    write_release(tmp_path, source, num_shards=shards, compress=compress)
    loaded = load_pretrained(tmp_path / "bert_model.ckpt")
    assert_same_params(source, loaded)
    assert loaded.model == source.model
    assert loaded.tokenizer is not None
    assert source.tokenizer is not None
    assert loaded.tokenizer.fingerprint == source.tokenizer.fingerprint


@pytest.mark.soak
def test_a_checkpoint_of_base_size_comes_in_exactly(tmp_path):
    source = random_source("base")
    write_release(tmp_path, source)
    assert_same_params(source, load_pretrained(tmp_path))


def test_fine_tuned_classifier_of_the_original_comes_in(tmp_path):
    source = random_source(architecture="BertForSequenceClassification", num_labels=3)
    write_release(tmp_path, source)
    loaded = load_pretrained(tmp_path)
    assert (loaded.architecture, loaded.num_labels) == ("BertForSequenceClassification", 3)
    assert_same_params(source, loaded)


def refused(tmp_path) -> str:
    with pytest.raises(UserError) as caught:
        load_pretrained(tmp_path / "bert_model.ckpt")
    return str(caught.value)


def test_missing_unexpected_and_misshapen_variables_are_listed(tmp_path):
    source = random_source()
    write_release(tmp_path, source)
    tensors = tf1_tensors(source, adam=False)
    del tensors["bert/encoder/layer_1/output/dense/bias"]
    tensors["bert/strange"] = np.zeros(3, np.float32)
    write_checkpoint(tmp_path / "bert_model.ckpt", tensors)
    line = refused(tmp_path)
    assert "bert/encoder/layer_1/output/dense/bias" in line
    assert "bert/strange" in line
    assert "parts of the encoder are missing" in line
    assert "--init_missing=" not in line  # would make noise of the model
    tensors = tf1_tensors(source, adam=False)
    write_checkpoint(tmp_path / "bert_model.ckpt", tensors | {"bert/strange": np.zeros(3, np.float32)})
    line = refused(tmp_path)
    assert "bert/strange" in line
    assert "--drop=" in line
    tensors["bert/pooler/dense/bias"] = np.zeros(3, np.float32)
    write_checkpoint(tmp_path / "bert_model.ckpt", tensors)
    assert "of the wrong shape: bert/pooler/dense/bias" in refused(tmp_path)
    tensors["bert/pooler/dense/bias"] = np.full(128, np.nan, np.float32)
    write_checkpoint(tmp_path / "bert_model.ckpt", tensors)
    assert "not finite" in refused(tmp_path)


def test_of_two_encoders_the_advice_drops_one(tmp_path):
    source = random_source()
    write_release(tmp_path, source)
    tensors = tf1_tensors(source, adam=False)
    tensors |= {f"ema/{name}": array + 1 for name, array in tensors.items()}
    write_checkpoint(tmp_path / "bert_model.ckpt", tensors)
    assert "--drop='ema/*'" in refused(tmp_path)
    assert_same_params(source, load_pretrained(tmp_path / "bert_model.ckpt", drop=["ema/*"]))


def test_a_flipped_bit_in_the_data_is_caught_by_its_checksum(tmp_path):
    source = random_source()
    write_release(tmp_path, source)
    file = tmp_path / "bert_model.ckpt.data-00000-of-00001"
    data = bytearray(file.read_bytes())
    place = data.find(source.params["pooler"]["dense"]["bias"].tobytes())
    data[place + 1] ^= 4
    file.write_bytes(data)
    assert "checksum of bert/pooler/dense/bias differs" in refused(tmp_path)


def test_an_index_of_shared_prefixes_cannot_grow_without_bound():
    """2,000 keys of 4,000 bytes in 0.5 MB: checksums and order are right."""
    items = [(b"k" * 4000 + number.to_bytes(4, "big"), b"") for number in range(2_000)]
    with pytest.raises(TableError, match="far larger than the file"):
        read_table(table(items))


def test_variables_that_share_bytes_are_refused_before_a_checksum_is_taken(tmp_path, monkeypatch):
    write_release(tmp_path, random_source())
    monkeypatch.setattr(
        "bert_jax.convert.tf1._check_cover", lambda *_, **__: (_ for _ in ()).throw(TableError("share"))
    )
    monkeypatch.setattr("bert_jax.convert.tf1.masked_crc32c", lambda _: pytest.fail("a checksum was taken"))
    assert "share" in refused(tmp_path)


def test_what_the_optimizers_of_tensorflow_leave_is_no_weight(tmp_path):
    source = random_source()
    write_release(tmp_path, source)
    tensors = tf1_tensors(source, adam=False)
    extra = {
        "bert/pooler/dense/bias/Adam": 128,
        "bert/pooler/dense/bias/Adam_1": 128,
        "beta1_power": 1,
        "good_steps": 1,
    }
    tensors |= {name: np.zeros(size, np.float32) for name, size in extra.items()}
    write_checkpoint(tmp_path / "bert_model.ckpt", tensors)
    assert_same_params(source, load_pretrained(tmp_path))


def test_partitioned_variables_are_refused_with_a_line(tmp_path):
    from tf1_writer import field, table

    source = random_source()
    write_release(tmp_path, source)
    items = [(b"", field(1, 1)), (b"bert/sliced", field(1, 1) + field(7, b""))]
    (tmp_path / "bert_model.ckpt.index").write_bytes(table(items))
    assert "partitioned variable" in refused(tmp_path)


def test_a_missing_data_file_or_config_is_named(tmp_path):
    write_release(tmp_path, random_source())
    (tmp_path / "bert_config.json").rename(tmp_path / "other.json")
    assert "bert_config.json: does not exist" in refused(tmp_path)
    (tmp_path / "other.json").rename(tmp_path / "bert_config.json")
    (tmp_path / "bert_model.ckpt.data-00000-of-00001").unlink()
    assert "this file of bert_model.ckpt.index is missing" in refused(tmp_path)


def test_snappy_is_undone_exactly():
    generator = np.random.default_rng(0)
    for size in (0, 1, 59, 61, 1000, 70_000):
        data = bytes(generator.integers(0, 4, size, np.uint8)) + b"abcdefgh" * 20
        assert decompress_snappy(snappy(data)) == data
    # By hand, from the format description: a run made of an overlapping copy.
    assert decompress_snappy(bytes([10, 0 << 2]) + b"a" + bytes([(9 - 4) << 2 | 1, 1])) == b"a" * 10


def test_damaged_snappy_never_crashes_or_grows():
    refused = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        data = bytearray(snappy(b"bert/encoder/layer_0/attention/" * 9))
        for position in generator.integers(0, len(data), 3):
            data[position] = generator.integers(256)
        try:
            out = decompress_snappy(bytes(data))
        except TableError:
            refused += 1
        else:
            assert len(out) <= 64 * len(data), seed
    assert 0 < refused < 200
