import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from built_datasets import LENGTH, build, config_for, make_corpus
from text_corpus import make_documents, write_corpus, write_vocabulary

from bert_jax.data import dataset_info, shards
from bert_jax.data.builder import load_dataset_info
from bert_jax.errors import UserError
from bert_jax.usage import as_flags


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_corpus_of_one_document_gets_one_clear_line(tmp_path):
    text = write_corpus(tmp_path / "text", make_documents(1), num_files=1)
    write_vocabulary(tmp_path / "vocabulary")
    with pytest.raises(UserError, match=r"only one: give more documents, or set config\.data\.objective=mlm"):
        build(config_for(text), tmp_path / "nsp")
    for objective in ("mlm", "mlm+sop"):
        info, _ = build(config_for(text, objective=objective), tmp_path / objective)
        assert info.num_train_rows > 0
        assert info.num_validation_rows == 0


def test_what_an_error_line_says_to_type_works_in_the_same_folder(tmp_path):
    text = write_corpus(tmp_path / "text", make_documents(1), num_files=1)
    write_vocabulary(tmp_path / "vocabulary")
    with pytest.raises(UserError, match="objective=mlm"):
        build(config_for(text), tmp_path / "out")
    info, _ = build(config_for(text, objective="mlm"), tmp_path / "out")
    assert info.objective == "mlm"
    with pytest.raises(UserError, match=r"objective='mlm', now it is 'mlm\+sop'"):
        build(config_for(text, objective="mlm+sop"), tmp_path / "out")


def test_an_empty_corpus_gets_one_clear_line(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "nothing.txt").write_text("\n\n")
    write_vocabulary(tmp_path / "vocabulary")
    with pytest.raises(UserError, match="no text in input"):
        build(config_for(tmp_path / "text"), tmp_path / "out")


def test_files_in_the_way_are_not_taken_for_a_data_set(corpus, tmp_path):
    (tmp_path / "vocab").mkdir()
    with pytest.raises(UserError, match="was not made by prepare"):
        build(config_for(corpus), tmp_path)


@pytest.mark.parametrize(
    ("changes", "arguments", "named"),
    [
        ({"objective": "nsp"}, {}, "data.objective='nsp': did you mean mlm"),
        ({"format": "pdf"}, {}, "data.format='pdf'"),
        ({"heldout_fraction": 0.95}, {}, "heldout_fraction=0.95"),
        ({"short_seq_prob": 1.5}, {}, "short_seq_prob=1.5"),
        ({"num_workers": -1}, {}, "num_workers=-1"),
        (
            {"language": "xx"},
            {},
            r"data\.language='xx' is not a language code: write one of ISO 639-1, ",
        ),
        ({"language": "English"}, {}, r"data\.language='English' is not a language code"),
        ({"seed": 10**23}, {}, r"data\.seed=10{23}: must not be negative, nor larger than 9223372036854775807"),
        ({}, {"recipe": "new"}, "recipe='new': choose one of modern, original"),
        ({}, {"runner": "spark"}, "runner='spark': choose one of local, beam"),
        ({}, {"lengths": ()}, "max_seq_length is empty: give at least one"),
        ({}, {"lengths": (4,)}, "max_seq_length=4"),
        ({}, {"vocab_size": 100}, "tokens, more than vocab_size=100: set config.model.vocab_size="),
    ],
)
def test_wrong_settings_get_one_line_before_anything_is_written(corpus, tmp_path, changes, arguments, named):
    with pytest.raises(UserError, match=named):
        build(config_for(corpus, **changes), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_cased_vocabulary_and_lower_casing_contradict_each_other(corpus, tmp_path):
    vocabulary = write_vocabulary(tmp_path)
    vocabulary.write_text(vocabulary.read_text() + "Boston\n")
    config = dataclasses.replace(config_for(corpus), vocab=str(vocabulary))
    with pytest.raises(UserError, match=r"is cased and do_lower_case is True: set config\.data\.do_lower_case=False"):
        build(config, tmp_path / "out")
    info, _ = build(dataclasses.replace(config, do_lower_case=False), tmp_path / "out")
    assert not info.do_lower_case
    assert info.statistics["unknown_share"] > 0.01  # "The" is not in it


def test_a_full_disk_is_seen_before_anything_is_written(corpus, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(
        UserError, match=r"has 1.0 kB free, but about .* are needed: free disk space, or choose another --out"
    ):
        build(config_for(corpus), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_permission_gets_one_line(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose an --out that you may write to"):
        build(config_for(corpus), tmp_path / "file" / "out")


def test_an_out_that_cannot_be_written_is_said_before_the_text_is_read(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("bert_jax.data.builder.read_sample", None)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match=rf"--out={file}: {file} is not a folder: choose an --out"):
        build(config_for(corpus), file)
    with pytest.raises(UserError, match=r"--out=/proc/x: cannot write in /proc \(.*\): choose an --out that you may"):
        build(config_for(corpus), Path("/proc/x"))
    assert file.read_text() == ""


@pytest.mark.parametrize("exists", [True, False])
def test_a_vocabulary_that_the_text_does_not_support_leaves_no_unfinished_data_set(corpus, tmp_path, exists):
    config, out = dataclasses.replace(config_for(corpus), vocab=""), tmp_path / "out"
    if exists:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"a vocabulary of 30522 tokens is more than .* type --config\.model\.vocab"
    ) as error:
        build(config, out)
    assert "type --vocab_size=" in as_flags(str(error.value), names={"vocab_size"})
    assert [path.name for path in tmp_path.glob("out/*")] == ["notes.txt"] * exists
    assert out.exists() == exists
    size = int(str(error.value).split("vocab_size=")[1].split(",")[0])
    assert build(config, out, vocab_size=size)[0].vocab_size == size


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda out: None, "does not exist: make it with prepare"),
        (lambda out: out.mkdir(), "contains an unfinished data set"),
    ],
)
def test_a_missing_data_set_is_named(tmp_path, make, message):
    make(tmp_path / "out")
    with pytest.raises(UserError, match=message):
        load_dataset_info(tmp_path / "out", max_seq_length=128)


def test_a_missing_length_is_named_with_those_there_are(corpus, tmp_path):
    build(config_for(corpus), tmp_path / "out", lengths=(32, LENGTH))
    with pytest.raises(UserError, match=r"no sequences of max_seq_length=512, only of 32, 64: add them with prepare"):
        load_dataset_info(tmp_path / "out", max_seq_length=512)
    file = shards.dataset_directory(tmp_path / "out", max_seq_length=32) / dataset_info.METADATA_FILE
    file.write_text(json.dumps({}))
    with pytest.raises(UserError, match="cannot be read"):
        load_dataset_info(tmp_path / "out", max_seq_length=32)
