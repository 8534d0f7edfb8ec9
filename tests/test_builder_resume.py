import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from built_datasets import LENGTH, build, config_for, content, make_corpus, use_small_shards
from text_corpus import make_documents, write_corpus, write_vocabulary

from bert_jax.data import builder, intermediate, output_folder, shards
from bert_jax.data.builder import load_dataset_info
from bert_jax.errors import UserError
from bert_jax.pretrain.dataset import open_datasets
from tests.tiny_model import tiny_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_second_call_says_that_nothing_is_to_do(corpus, tmp_path):
    first, lines = build(config_for(corpus), tmp_path / "out")
    assert any("sequences of 64" in line for line in lines)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    second, lines = build(config_for(corpus, num_workers=2), tmp_path / "out")
    assert lines == [f"data set in {tmp_path / 'out'} is complete, nothing to do"]
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert not (tmp_path / "out" / "work").exists()


def test_a_length_added_later_equals_one_built_at_once(corpus, tmp_path, monkeypatch):
    use_small_shards(monkeypatch)
    build(config_for(corpus), tmp_path / "once", lengths=(32, LENGTH))
    build(config_for(corpus), tmp_path / "later", lengths=(LENGTH,))
    info, _ = build(config_for(corpus), tmp_path / "later", lengths=(32, LENGTH))
    assert content(tmp_path / "later") == content(tmp_path / "once")
    assert info.max_seq_length == 32
    fingerprints = {load_dataset_info(tmp_path / "later", max_seq_length=n).data_fingerprint for n in (32, LENGTH)}
    assert fingerprints == {info.data_fingerprint}


def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(corpus, tmp_path, monkeypatch):
    use_small_shards(monkeypatch)
    build(config_for(corpus), tmp_path / "whole", lengths=(32, LENGTH))
    out = tmp_path / "killed"
    written: list[str] = []
    real = shards._write_records

    def dying(file, rows, prefix):
        if len(written) in stops:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.with_name(file.name + ".partial").write_bytes(b"half a shard")
            stops.discard(len(written))
            raise KeyboardInterrupt
        written.append(file.name)
        real(file, rows, prefix)

    monkeypatch.setattr(shards, "_write_records", dying)
    stops = {0, 3, 5}
    attempts = 0
    while True:
        attempts += 1
        try:
            build(config_for(corpus), out, lengths=(32, LENGTH))
            break
        except KeyboardInterrupt:
            with pytest.raises(UserError, match="unfinished data set: finish it with prepare"):
                load_dataset_info(out, max_seq_length=LENGTH)
    assert attempts == 4
    assert content(out) == content(tmp_path / "whole")
    # What was finished was kept: of each shard at most one length was written twice.
    assert len(written) <= 2 * sum(f"len{LENGTH}" in name and "array_record" in name for name in content(out)) + 2


def test_sigkill_at_any_moment_loses_nothing(corpus, tmp_path):
    build(config_for(corpus, num_workers=2), tmp_path / "whole")
    flags = [f"--input={corpus}", f"--out={tmp_path / 'out'}", f"--max_seq_length={LENGTH}", "--heldout_fraction=0.1"]
    flags += [f"--vocab={corpus.parent / 'vocabulary' / 'vocab.txt'}", "--num_workers=2"]
    command = [sys.executable, "-m", "bert_jax.prepare", *flags]
    for least in (1, 8):  # files that are there, some of them half written: the second kill comes later in the build
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while sum(path.is_file() for path in (tmp_path / "out").rglob("*")) < least:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_damaged_shard_is_made_again_when_the_build_goes_on(corpus, tmp_path, monkeypatch):
    build(config_for(corpus), tmp_path / "whole")
    monkeypatch.setattr(builder, "write_dataset_info", lambda info: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(config_for(corpus), tmp_path / "out")
    monkeypatch.undo()
    shard = next((tmp_path / "out").rglob("*train.array_record*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    build(config_for(corpus), tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objective": "mlm"}, "objective='mlm\\+nsp', now it is 'mlm'"),
        ({"seed": 1}, "seed=12345, now it is 1"),
        ({"short_seq_prob": 0.2}, "short_seq_prob=0.1, now it is 0.2"),
        ({"heldout_fraction": 0.2}, "heldout_fraction=0.1, now it is 0.2"),
        ({"language": "de"}, "language='en', now it is 'de'"),
        ({"format": "prose"}, "format='auto', now it is 'prose'"),
        ({"do_lower_case": False}, "do_lower_case=True, now it is False"),
    ],
)
def test_other_settings_are_refused_by_name(corpus, tmp_path, changes, named):
    build(config_for(corpus), tmp_path / "out")
    with pytest.raises(UserError, match=named + "[:;].* choose another --out, or delete"):
        build(config_for(corpus, **changes), tmp_path / "out")


def test_another_recipe_vocabulary_or_text_is_refused(tmp_path):
    text = write_corpus(tmp_path / "text", make_documents(10))
    vocabulary = write_vocabulary(tmp_path / "vocabulary")
    build(config_for(text), tmp_path / "out")
    with pytest.raises(UserError, match="recipe='modern', now it is 'original'"):
        build(config_for(text), tmp_path / "out", recipe="original")
    vocabulary.write_text(vocabulary.read_text() + "more\n")
    with pytest.raises(UserError, match="built with vocabulary="):
        build(config_for(text), tmp_path / "out")
    write_vocabulary(tmp_path / "vocabulary")
    file = text / "part1.txt"
    file.write_text(file.read_text().replace("the", "eht", 1))
    with pytest.raises(UserError, match=r"built from other text: part1.txt differs now:"):
        build(config_for(text), tmp_path / "out")
    file.unlink()
    with pytest.raises(UserError, match=r"part1.txt is not in the input now \(built from part0.txt and 2 more files;"):
        build(config_for(text), tmp_path / "out")
    with pytest.raises(UserError, match=r"the input now is part0.txt and 1 more file\): choose another --workdir$"):
        build(config_for(text), tmp_path / "out", flag="--workdir")


def test_a_run_with_a_data_set_of_other_text_is_given_another_workdir(tmp_path):
    write_vocabulary(tmp_path / "vocabulary")

    def open_with(name: str, *, num_files: int) -> None:
        data = config_for(write_corpus(tmp_path / name, make_documents(10), num_files=num_files))
        config = tiny_config(data=data, model=dataclasses.replace(tiny_config().model, vocab_size=0))
        open_datasets(config, workdir=tmp_path / "run", max_seq_lengths=(LENGTH,), report=lambda line: None)

    open_with("first", num_files=1)
    with pytest.raises(UserError, match=r"run/data was built from other text: .*: choose another --workdir$"):
        open_with("second", num_files=2)


def test_text_that_changed_where_the_samples_do_not_look_is_refused_for_a_new_length(tmp_path):
    documents = make_documents(200, max_sentences=60)
    text = write_corpus(tmp_path / "text", documents, num_files=1)
    write_vocabulary(tmp_path / "vocabulary")
    build(config_for(text), tmp_path / "out")
    file = text / "part0.txt"
    content_now = bytearray(file.read_bytes())
    offset = 100_000
    assert len(content_now) > 3 * offset
    position = content_now.index(b" the ", offset)
    content_now[position : position + 5] = b" eht "
    file.write_bytes(content_now)
    build(config_for(text), tmp_path / "out")  # complete: the text is not read again
    with pytest.raises(UserError, match="differs from that of the data set of length 64"):
        build(config_for(text), tmp_path / "out", lengths=(LENGTH, 32))


def test_a_disk_that_fills_up_gets_one_line_and_the_next_run_goes_on(corpus, tmp_path, monkeypatch):
    real, calls = intermediate.write_json, []

    def full(path, value):
        calls.append(path)
        if len(calls) == 3:
            path.with_name(path.name + ".partial").write_text("{")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, value)

    monkeypatch.setattr(intermediate, "write_json", full)
    monkeypatch.setattr(shards, "write_json", full)
    with pytest.raises(UserError, match=r"is full: free disk space; finished work is kept"):
        build(config_for(corpus), tmp_path / "out")
    build(config_for(corpus), tmp_path / "out")
    build(config_for(corpus), tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_two_builds_do_not_write_to_the_same_folder(corpus, tmp_path):
    tmp_path.joinpath("out").mkdir()
    with (
        output_folder.exclusive(tmp_path / "out"),
        pytest.raises(UserError, match="another process is building"),
    ):
        build(config_for(corpus), tmp_path / "out")


def test_the_fingerprint_follows_text_and_settings_but_not_place_or_workers(corpus, tmp_path):
    info, _ = build(config_for(corpus), tmp_path / "a")
    moved = shutil.copytree(corpus.parent, tmp_path / "moved") / corpus.name
    same, _ = build(config_for(moved, num_workers=2), tmp_path / "b")
    assert same.data_fingerprint == info.data_fingerprint
    others = [
        build(config_for(corpus, seed=1), tmp_path / "c")[0],
        build(config_for(corpus, objective="mlm"), tmp_path / "d")[0],
    ]
    file = moved / "part0.txt"
    file.write_text(file.read_text() + "one more.\n")
    others.append(build(config_for(moved), tmp_path / "e")[0])
    assert len({info.data_fingerprint, *(other.data_fingerprint for other in others)}) == 4
