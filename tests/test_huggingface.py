"""HuggingFace folders: in and out exactly, every tensor accounted for, nothing else read."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy as reference
from source_helpers import assert_same_params, flat, minilm, random_source

from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.huggingface import read_tensors, to_tensors
from bert_jax.convert.loading import initial_params, load_pretrained, model_of
from bert_jax.convert.safetensors_file import read_safetensors, write_safetensors
from bert_jax.errors import UserError
from bert_jax.model.architectures import ARCHITECTURES

CLASSES = ARCHITECTURES["bert"].huggingface.classes


def quiet(line: str) -> None:
    del line


def exported(source, folder, **options):
    export_folder(source, out=folder, report=quiet, **options)
    return folder


def rewrite(folder, change) -> None:
    """Change the tensors of a folder and write them without our checksums, as another program would."""
    tensors = {name: np.array(array) for name, array in read_tensors(folder).items()}
    change(tensors)
    write_foreign(folder / "model.safetensors", tensors)


def write_foreign(file, tensors) -> None:
    place, header = 0, {}
    codes = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    for name, array in tensors.items():
        offsets = [place, place + array.nbytes]
        header[name] = {"dtype": codes[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        place += array.nbytes
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(array.tobytes() for array in tensors.values()))


def change_config(folder, **fields) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    return exported(random_source(), tmp_path_factory.mktemp("original") / "out")


@pytest.fixture(scope="session")
def sharded(tmp_path_factory) -> Path:
    return exported(random_source(), tmp_path_factory.mktemp("sharded") / "out", max_shard_bytes=100_000)


@pytest.fixture
def folder(original, tmp_path) -> Path:
    """A copy of an exported folder, to be spoilt."""
    return shutil.copytree(original, tmp_path / "out")


@pytest.fixture
def shards(sharded, tmp_path) -> Path:
    return shutil.copytree(sharded, tmp_path / "out")


def refused(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_pretrained(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("architecture", list(CLASSES))
def test_ours_to_huggingface_and_back_is_exact(tmp_path, architecture):
    source = random_source("small-test", architecture=architecture)
    loaded = load_pretrained(exported(source, tmp_path / "out"))
    assert loaded.architecture == architecture
    assert_same_params(source, loaded)
    assert loaded.labels == source.labels


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_huggingface_to_ours_and_back_gives_the_same_tensors(tmp_path, dtype):
    first = exported(random_source("small-test"), tmp_path / "first", dtype=dtype)
    loaded = load_pretrained(first)
    assert loaded.dtype == dtype
    second = exported(loaded, tmp_path / "second")
    left, right = read_tensors(first), read_tensors(second)
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        assert array.tobytes() == right[name].tobytes()


def test_genuine_weights_come_back_bit_for_bit(tmp_path):
    folder = minilm()
    source = load_pretrained(folder)
    again = read_tensors(exported(source, tmp_path / "out"))
    # The reference library reads what ours wrote, and the original.
    original = reference.load_file(folder / "model.safetensors")
    original.pop("embeddings.position_ids", None)
    theirs = reference.load_file(tmp_path / "out" / "model.safetensors")
    assert original.keys() == again.keys() == theirs.keys()
    for name, array in original.items():
        assert array.tobytes() == again[name].tobytes() == theirs[name].tobytes(), name


def test_shards_and_one_file_hold_the_same(original, sharded):
    assert len(list(sharded.glob("model-*.safetensors"))) > 5
    assert_same_params(load_pretrained(original), load_pretrained(sharded))


def test_words_of_old_files_are_understood(folder):
    """gamma and beta, position_ids, and the tied decoder under its own name, as released models have them."""
    source = random_source()

    def old(tensors):
        for name in list(tensors):
            if "LayerNorm" in name:
                new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
                tensors[new] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = np.arange(512, dtype=np.int64)[None]
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")

    rewrite(folder, old)
    assert_same_params(source, load_pretrained(folder))


def test_an_untied_decoder_is_refused_and_can_be_dropped(folder):
    rewrite(
        folder,
        lambda t: t.update({"cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"] + 1}),
    )
    assert "differs from bert.embeddings.word_embeddings.weight" in refused(folder)
    assert load_pretrained(folder, drop=["cls.predictions.decoder.weight"]).architecture == "BertForPreTraining"


def test_missing_tensors_are_listed_or_drawn_when_asked(folder):
    source = random_source()
    rewrite(folder, lambda t: t.pop("cls.predictions.transform.dense.weight"))
    line = refused(folder)
    assert "1 missing: cls.predictions.transform.dense.weight" in line
    assert "--init_missing=masked_lm" in line
    loaded = load_pretrained(folder, init_missing=["masked_lm"])
    drawn = flat(loaded)["masked_lm/transform/kernel"]
    assert 0.015 < drawn.std() < 0.02  # a normal of 0.02 cut at two standard deviations: 0.0176
    assert flat(loaded)["masked_lm/bias"].tobytes() == flat(source)["masked_lm/bias"].tobytes()


def test_a_whole_missing_part_is_named(tmp_path):
    folder = exported(random_source(architecture="BertModel"), tmp_path / "out")
    change_config(folder, architectures=["BertForPreTraining"])
    line = refused(folder)
    assert "cls.predictions.transform.dense.weight" in line
    assert "--init_missing=masked_lm,next_sentence" in line
    loaded = load_pretrained(folder, init_missing=["masked_lm", "next_sentence"])
    assert loaded.architecture == "BertForPreTraining"


def test_unexpected_tensors_are_listed_or_dropped_when_asked(folder):
    source = random_source()
    rewrite(folder, lambda t: t.update({"bert.adapter.weight": np.zeros(3, np.float32)}))
    assert "1 unexpected: bert.adapter.weight" in refused(folder)
    assert_same_params(source, load_pretrained(folder, drop=["bert.adapter.*"]))


def test_parts_can_be_dropped(folder):
    assert load_pretrained(folder, drop=["pooler", "next_sentence"], init_missing=[]).architecture == "BertForMaskedLM"


def test_a_tensor_of_another_shape_or_type_is_named(folder):
    rewrite(folder, lambda t: t.update({"cls.predictions.bias": np.zeros(7, np.float32)}))
    assert "of the wrong shape: cls.predictions.bias ((7,)" in refused(folder)
    rewrite(folder, lambda t: t.update({"cls.predictions.bias": np.zeros(7, np.int64)}))
    assert "of the wrong dtype: cls.predictions.bias" in refused(folder)


def test_a_class_is_never_taken_for_another_that_its_file_does_not_name(tmp_path):
    """Older transformers saved a pooler with a tagger; with it the tensors are those of a classifier of sequences."""
    folder = exported(random_source(architecture="BertForSequenceClassification"), tmp_path / "out")
    assert load_pretrained(folder).architecture == "BertForSequenceClassification"
    change_config(folder, architectures=["BertForTokenClassification"])
    lines: list[str] = []
    assert load_pretrained(folder, report=lines.append).architecture == "BertForTokenClassification"
    assert lines == [f"{folder}: skipped the pooler, which BertForTokenClassification does not have"]
    assert load_pretrained(folder, drop=["pooler"]).architecture == "BertForTokenClassification"


def test_labels_are_as_many_as_the_classifier_has(tmp_path):
    folder = exported(random_source(architecture="BertForSequenceClassification"), tmp_path / "out")
    change_config(folder, id2label={"0": "no", "1": "yes"})
    assert "classifier (3 labels, the config names 2)" in refused(folder)
    change_config(folder, architectures=["BertForMultipleChoice"], id2label={"0": "a", "1": "b", "2": "c"})
    assert "a multiple-choice model has 1" in refused(folder)


def test_a_config_that_lies_about_sizes_is_told_before_anything_is_drawn(tmp_path, monkeypatch):
    folder = exported(random_source(architecture="BertModel"), tmp_path / "out")
    change_config(folder, hidden_size=1 << 24, num_attention_heads=2)
    monkeypatch.setattr("bert_jax.convert.assemble.random_parameter", lambda *_, **__: pytest.fail("drawn"))
    with pytest.raises(UserError, match="of the wrong shape"):
        load_pretrained(folder, init_missing=["masked_lm", "next_sentence"])


def test_mixed_widths_come_in_as_the_widest(folder):
    rewrite(folder, lambda t: t.update({"cls.predictions.bias": t["cls.predictions.bias"].astype(np.float16)}))
    assert load_pretrained(folder).dtype == "float32"


@pytest.mark.parametrize("beside", [True, False], ids=["vocab.txt beside it", "alone"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: v["added_tokens"].append({"id": len(v["model"]["vocab"]), "content": "zebrafish"}), "added_tokens"),
        (lambda v: v["added_tokens"].append({"id": 7, "content": "cat"}), "gives 'cat' the id 7"),
        (lambda v: v.update(pre_tokenizer={"type": "WhitespaceSplit"}), "pre_tokenizer"),
        (lambda v: v["model"].update(continuing_subword_prefix="@@"), "continuing_subword_prefix"),
    ],
    ids=["no row", "other id", "white space", "prefix"],
)
def test_a_tokenizer_that_does_what_ours_cannot_is_refused(folder, change, told, beside):
    file = folder / "tokenizer.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
    if not beside:
        (folder / "vocab.txt").unlink()
    assert told in refused(folder)


def test_two_vocabularies_that_differ_are_refused(folder):
    file = folder / "vocab.txt"
    file.write_text(file.read_text().replace("cat\n", "cow\n"))
    assert "different tokens" in refused(folder)


@pytest.mark.parametrize("name", [".", "/", "", "~nosuchuser", "x" * 300, "checkpoints/²", "a\0b"])
def test_no_path_is_a_traceback(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        load_pretrained(name)


def test_the_folder_one_is_in_is_a_source(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert load_pretrained(".").architecture == "BertForPreTraining"


def test_a_masked_lm_with_the_parts_of_pretraining_is_that(folder):
    """The released bert-base-uncased calls itself BertForMaskedLM and holds all of BertForPreTraining."""
    source = random_source()
    change_config(folder, architectures=["BertForMaskedLM"])
    loaded = load_pretrained(folder)
    assert loaded.architecture == "BertForPreTraining"
    assert_same_params(source, loaded)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model_type": "roberta"}, "model_type"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_act": "swish"}, "hidden_act"),
        ({"hidden_size": "128"}, "hidden_size"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"architectures": ["BertGenerationDecoder"]}, "BertGenerationDecoder"),
        ({"vocab_size": 50}, "bert.embeddings.word_embeddings.weight"),
        ({"id2label": {"1": "x"}}, "id2label"),
        ({"layer_norm_eps": None}, "layer_norm_eps"),
    ],
)
def test_a_config_that_means_something_else_is_refused_by_field(folder, fields, told):
    change_config(folder, **fields)
    assert told in refused(folder)


def test_pickles_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "save_pretrained" in refused(folder)
    assert "save_pretrained" in refused(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "sub/x.safetensors", "pytorch_model.bin", "a\\b.safetensors"]
)
def test_an_index_cannot_point_outside_of_its_folder(shards, tmp_path, name):
    shutil.copy(next(shards.glob("model-*.safetensors")), tmp_path / "other.safetensors")
    index = shards / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["cls.predictions.bias"] = name
    index.write_text(json.dumps(value))
    assert "only .safetensors files of the same folder" in refused(shards)


def test_an_index_that_lies_about_its_shards_is_refused(shards):
    index = shards / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    del value["weight_map"]["cls.predictions.bias"]
    index.write_text(json.dumps(value))
    assert "disagree about cls.predictions.bias" in refused(shards)
    next(iter(sorted(shards.glob("model-*.safetensors")))).unlink()
    assert "is missing" in refused(shards)


def test_a_vocabulary_larger_than_the_embeddings_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with (folder / "vocab.txt").open("a") as file:
        file.write("another\n")
    assert "vocabulary has" in refused(folder)


def test_a_folder_with_only_tokenizer_json_has_its_vocabulary(folder):
    source = random_source()
    (folder / "vocab.txt").unlink()
    loaded = load_pretrained(folder).tokenizer
    assert loaded is not None
    assert source.tokenizer is not None
    assert loaded.fingerprint == source.tokenizer.fingerprint


def test_nothing_there_says_what_to_name(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        assert "a HuggingFace folder" in refused(path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "no config.json" in refused(tmp_path)


def test_weights_too_large_for_the_narrow_type_are_refused():
    source = random_source()
    source.params["masked_lm"]["bias"][3] = 1e6
    with pytest.raises(UserError, match="too large for float16"):
        to_tensors(source, dtype="float16")


def test_safetensors_are_written_as_the_reference_reads_them(tmp_path):
    generator = np.random.default_rng(0)
    tensors = {
        "a": generator.standard_normal((3, 5)).astype(np.float32),
        "b": generator.standard_normal(7).astype(np.float16),
        "c": generator.standard_normal((2, 2, 2)).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(2.5, np.float32),
    }
    write_safetensors(tmp_path / "ours.safetensors", tensors)
    theirs = reference.load_file(tmp_path / "ours.safetensors")
    ours = read_safetensors(tmp_path / "ours.safetensors")
    reference.save_file(tensors, tmp_path / "theirs.safetensors")
    back = read_safetensors(tmp_path / "theirs.safetensors")
    for name, array in tensors.items():
        for read in (theirs, ours, back):
            assert read[name].shape == array.shape
            assert read[name].tobytes() == array.tobytes()


def test_the_same_tensors_give_the_same_file_with_the_permissions_of_any_other(tmp_path):
    tensors = {name: np.arange(size, dtype=np.float32) for name, size in (("b", 3), ("a", 2))}
    files = [tmp_path / f"{number}.safetensors" for number in range(10)]
    for file in files:
        write_safetensors(file, tensors)
    assert len({file.read_bytes() for file in files}) == 1
    (tmp_path / "other").touch()
    assert files[0].stat().st_mode == (tmp_path / "other").stat().st_mode


def test_initial_params_are_those_of_the_source_and_complain_of_another_shape():
    source = random_source(architecture="BertModel")
    with pytest.raises(UserError, match="--init_missing=masked_lm,next_sentence"):
        initial_params(source, model=source.model)
    params = initial_params(source, model=source.model, init_missing=["masked_lm", "next_sentence"])
    assert set(params) == set(CLASSES["BertForPreTraining"])
    assert params["encoder"] is source.params["encoder"]
    other = random_source("mini").model
    with pytest.raises(UserError, match=r"--config\.model\.hidden_size=128"):
        initial_params(source, model=other, init_missing=["masked_lm", "next_sentence"])
    assert model_of(source, model=other).hidden_size == 128


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_link_that_leads_nowhere_is_named(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../blobs/0123")
    with pytest.raises(UserError, match=rf"{name}: is a link to ../blobs/0123, which does not exist"):
        load_pretrained(folder)
