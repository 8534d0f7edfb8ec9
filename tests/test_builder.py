import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from text_corpus import make_documents, marker, write_corpus, write_vocabulary

from bert_jax.config import DataConfig
from bert_jax.data import builder, dataset_info, intermediate, shards, survey
from bert_jax.data.builder import build_dataset, load_dataset_info
from bert_jax.data.loader import PretrainingBatches
from bert_jax.data.tokenization import load_tokenizer
from bert_jax.errors import UserError

LENGTH = 64


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_vocabulary(folder / "vocabulary")
    return write_corpus(folder / "text", make_documents(150))


@pytest.fixture
def small_shards(monkeypatch):
    """Make a corpus of a few hundred kB fall into several shards, chunks and blocks."""
    monkeypatch.setattr(survey, "_MIN_SHARD_BYTES", 1 << 16)
    monkeypatch.setattr(intermediate, "CHUNK_BYTES", 1 << 16)
    monkeypatch.setattr(intermediate, "BLOCK_BYTES", 1 << 15)


def config_for(corpus: Path, **changes) -> DataConfig:
    settings = {"heldout_fraction": 0.1, "num_workers": 1, **changes}
    return DataConfig(input=str(corpus), vocab=str(corpus.parent / "vocabulary" / "vocab.txt"), **settings)


def build(config: DataConfig, out: Path, *, lengths=(LENGTH,), vocab_size=0, **changes):
    lines: list[str] = []
    info = build_dataset(
        config, out=out, max_seq_lengths=lengths, vocab_size=vocab_size, report=lines.append, **changes
    )
    return info, lines


def content(out: Path) -> dict[str, str]:
    """Return a hash of every file of a data set."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(out: Path, split: str, *, length=LENGTH) -> list[tuple[list[int], int]]:
    """Return (ids without padding, label) of every row of a split, in order."""
    batches = PretrainingBatches(out, max_seq_length=length, split=split, batch_size=50, seed=0, shuffle=False)
    rows = []
    for number in range(len(batches)):
        batch = batches[number]
        for ids, lengths, label in zip(
            batch["input_ids"], batch["segment_lengths"], batch["next_sentence_labels"], strict=True
        ):
            if lengths.sum():
                rows.append((ids[: lengths.sum()].tolist(), int(label[0])))
    return rows


def markers_of(out: Path, split: str, *, only_a: bool = False) -> set[int]:
    """Return which documents' markers occur in the rows of a split."""
    pieces = load_tokenizer(out / "vocab").pieces
    known = {marker(number): number for number in range(400)}
    found = set()
    for ids, _ in rows_of(out, split):
        tokens = ids[: ids.index(3)] if only_a else ids
        found |= {known[pieces[number]] for number in tokens if pieces[number] in known}
    return found


def test_bytes_do_not_depend_on_the_number_of_workers(corpus, tmp_path, monkeypatch, small_shards):
    contents = []
    for num_workers in (1, 3):
        out = tmp_path / str(num_workers)
        build(config_for(corpus, num_workers=num_workers), out, lengths=(32, LENGTH))
        contents.append(content(out))
    assert contents[0] == contents[1]
    assert sum("train.array_record" in name for name in contents[0]) >= 4


def test_rows_hold_the_documents_sentences_in_their_order(corpus, tmp_path):
    out = tmp_path / "out"
    build(config_for(corpus, objective="mlm", heldout_fraction=0.0, short_seq_prob=0.0), out)
    tokenizer = load_tokenizer(out / "vocab")
    text = [token for ids, _ in rows_of(out, "train") for token in ids[1:-1]]
    documents = [
        [token for ids in tokenizer.encode_batch(sentences) for token in ids] for sentences in make_documents(150)
    ]
    # Documents come in the order of a hash, each of them whole.
    starts = {tuple(tokens[:30]): tokens for tokens in documents}
    position = 0
    for _ in documents:
        tokens = starts.pop(tuple(text[position : position + 30]))
        assert text[position : position + len(tokens)] == tokens
        position += len(tokens)
    assert position == len(text)


def test_held_out_documents_are_never_trained_on(corpus, tmp_path):
    out = tmp_path / "out"
    info, _ = build(config_for(corpus), out)
    train, validation = markers_of(out, "train"), markers_of(out, "validation")
    assert train | validation == set(range(150))
    assert not train & validation
    assert 5 <= len(validation) <= 30  # 10 % of 150 documents
    assert info.statistics["documents"] == {"train": len(train), "validation": len(validation)}


@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp"])
@pytest.mark.parametrize("heldout_fraction", [1e-9, 0.89])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_small_corpora_keep_documents_on_both_sides(tmp_path, count, heldout_fraction, objective):
    text = write_corpus(tmp_path / "text", make_documents(count), num_files=1)
    write_vocabulary(tmp_path / "vocabulary")
    config = config_for(text, heldout_fraction=heldout_fraction, objective=objective)
    if objective == "mlm+nsp" and count < 4:
        with pytest.raises(UserError, match=f"{count} documents are too few: .* two to train on and two to hold out"):
            build(config, tmp_path / "out")
        return
    build(config, tmp_path / "out")
    heldout = markers_of(tmp_path / "out", "validation")  # of segments B, too
    trained = markers_of(tmp_path / "out", "train")
    for split in (heldout, trained):
        assert len(split) >= (2 if objective == "mlm+nsp" else 1)
    assert not heldout & trained


def test_nothing_is_held_out_where_the_fraction_is_zero(corpus, tmp_path):
    info, _ = build(config_for(corpus, heldout_fraction=0.0), tmp_path / "out")
    assert info.num_validation_rows == 0
    assert len(markers_of(tmp_path / "out", "train")) == 150
    with pytest.raises(UserError, match="no validation sequences"):
        PretrainingBatches(tmp_path / "out", max_seq_length=LENGTH, split="validation", batch_size=2, seed=0)


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


def test_shards_of_one_long_document_borrow_random_next_from_others(tmp_path, small_shards):
    long = [" ".join(["to be or not"] * 20) + " baloeru." for _ in range(16_000)]  # 1.4 MB: comes in parts
    text = write_corpus(tmp_path / "text", [long, *make_documents(12)[1:]], num_files=1)
    write_vocabulary(tmp_path / "vocabulary")
    info, _ = build(config_for(text, heldout_fraction=0.01), tmp_path / "out")
    assert info.statistics["documents"]["train"] + info.statistics["documents"]["validation"] == 12
    assert 0.48 < info.statistics["next_sentence_label_share"] < 0.52


def test_an_empty_corpus_gets_one_clear_line(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "nothing.txt").write_text("\n\n")
    write_vocabulary(tmp_path / "vocabulary")
    with pytest.raises(UserError, match="no text in input"):
        build(config_for(tmp_path / "text"), tmp_path / "out")


def test_a_second_call_says_that_nothing_is_to_do(corpus, tmp_path):
    first, lines = build(config_for(corpus), tmp_path / "out")
    assert any("sequences of 64" in line for line in lines)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    second, lines = build(config_for(corpus, num_workers=2), tmp_path / "out")
    assert lines == [f"data set in {tmp_path / 'out'} is complete, nothing to do"]
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert not (tmp_path / "out" / "work").exists()


def test_a_length_added_later_equals_one_built_at_once(corpus, tmp_path, small_shards):
    build(config_for(corpus), tmp_path / "once", lengths=(32, LENGTH))
    build(config_for(corpus), tmp_path / "later", lengths=(LENGTH,))
    info, _ = build(config_for(corpus), tmp_path / "later", lengths=(32, LENGTH))
    assert content(tmp_path / "later") == content(tmp_path / "once")
    assert info.max_seq_length == 32
    fingerprints = {load_dataset_info(tmp_path / "later", max_seq_length=n).data_fingerprint for n in (32, LENGTH)}
    assert fingerprints == {info.data_fingerprint}


def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(corpus, tmp_path, monkeypatch, small_shards):
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
    with pytest.raises(UserError, match=r"built from other text: part1.txt has changed"):
        build(config_for(text), tmp_path / "out")
    file.unlink()
    with pytest.raises(UserError, match=r"other text: part1.txt is no longer there"):
        build(config_for(text), tmp_path / "out")


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


def test_statistics_agree_with_a_count_of_the_rows(corpus, tmp_path):
    info, lines = build(config_for(corpus), tmp_path / "out", lengths=(LENGTH, 128))
    tokenizer = load_tokenizer(info.vocab_directory)
    rows = {split: rows_of(tmp_path / "out", split) for split in ("train", "validation")}
    every = rows["train"] + rows["validation"]
    statistics = info.statistics
    assert statistics["rows"] == {split: len(found) for split, found in rows.items()}
    assert statistics["padding_share"] == pytest.approx(1 - sum(len(ids) for ids, _ in every) / len(every) / LENGTH)
    assert statistics["next_sentence_label_share"] == pytest.approx(sum(label for _, label in every) / len(every))
    encoded = [tokenizer.encode_batch(sentences) for sentences in make_documents(150)]
    tokens = [token for document in encoded for sentence in document for token in sentence]
    assert sum(statistics["tokens"].values()) == len(tokens)
    texts = [sentence for sentences in make_documents(150) for sentence in sentences]
    assert sum(statistics["bytes"].values()) == sum(len(text.encode()) for text in texts)
    assert info.tokens_per_byte == statistics["tokens"]["validation"] / statistics["bytes"]["validation"]
    assert statistics["unknown_share"] == pytest.approx(tokens.count(tokenizer.unk_id) / len(tokens))
    assert info.max_token_id == max(tokens)
    assert info.vocabulary_fingerprint == tokenizer.fingerprint
    assert sum("padding" in line for line in lines) == 2
    assert info.num_train_rows == len(rows["train"])


def test_duplicate_paragraphs_are_counted_exactly_in_a_small_corpus_and_estimated_in_a_large_one(tmp_path, monkeypatch):
    sentences = [f"{marker(number % 300)} {marker(number // 7 % 300)} the." for number in range(3000)]
    documents = [sentences[start : start + 30] for start in range(0, 3000, 30)] + [sentences[:30]] * 20
    distinct = len(set(sentences))
    share = 1 - distinct / 3600
    text = write_corpus(tmp_path / "text", documents)
    write_vocabulary(tmp_path / "vocabulary")
    info, _ = build(config_for(text, objective="mlm"), tmp_path / "exact")
    assert info.statistics["paragraphs"] == 3600
    assert info.statistics["duplicate_paragraph_share"] == pytest.approx(share, abs=1e-12)
    monkeypatch.setattr("bert_jax.data.statistics.DUPLICATE_SAMPLE", 1200)
    info, _ = build(config_for(text, objective="mlm"), tmp_path / "estimate")
    assert info.statistics["duplicate_paragraph_share"] == pytest.approx(share, abs=0.06)
    assert info.statistics["duplicate_paragraph_share"] != pytest.approx(share, abs=1e-12)


def test_tfds_reads_the_data_set_without_tensorflow(corpus, tmp_path):
    info, _ = build(config_for(corpus), tmp_path / "out", lengths=(LENGTH, 128))
    code = f"""
import sys
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory({str(tmp_path / "out" / "bert_pretraining" / "len128" / "1.0.0")!r})
rows = builder.as_data_source(split="train")
print(len(rows), len(builder.as_data_source("validation")), rows[7]["row"].dtype, *rows[7]["row"])
print(builder.info.full_name, builder.info.metadata["vocabulary_fingerprint"], "tensorflow" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    row, named = printed.splitlines()
    num_train, num_validation, dtype, *numbers = row.split()
    other = load_dataset_info(tmp_path / "out", max_seq_length=128)
    assert (int(num_train), int(num_validation)) == (other.num_train_rows, other.num_validation_rows)
    assert dtype == "uint16"
    length_a, length_b, label = map(int, numbers[:3])
    ids, expected_label = rows_of(tmp_path / "out", "train", length=128)[7]
    assert list(map(int, numbers[3 : 3 + length_a + length_b])) == ids
    assert label == expected_label
    assert named == f"bert_pretraining/len128/1.0.0 {info.vocabulary_fingerprint} False"


def test_an_empty_shard_is_readable_by_tfds(tmp_path):
    # Of documents of one sentence, sentence order makes no rows: here all the held-out ones.
    text = write_corpus(tmp_path / "text", make_documents(60), num_files=1)
    write_vocabulary(tmp_path / "vocabulary")
    build(config_for(text, objective="mlm+sop"), tmp_path / "probe")
    heldout = markers_of(tmp_path / "probe", "validation")
    documents = [d[:1] if number in heldout else d for number, d in enumerate(make_documents(60))]
    write_corpus(text, documents, num_files=1)
    info, _ = build(config_for(text, objective="mlm+sop"), tmp_path / "out")
    assert (info.num_train_rows > 0, info.num_validation_rows) == (True, 0)
    import tensorflow_datasets as tfds

    directory = shards.dataset_directory(tmp_path / "out", max_seq_length=LENGTH)
    assert len(tfds.builder_from_directory(directory).as_data_source("train")) == info.num_train_rows  # pyright: ignore[reportCallIssue]


def test_a_vocabulary_is_learned_from_the_training_documents_alone(corpus, tmp_path):
    config = dataclasses.replace(config_for(corpus), vocab="")
    info, lines = build(config, tmp_path / "out", vocab_size=400)
    again, _ = build(dataclasses.replace(config, num_workers=2), tmp_path / "again", vocab_size=400)
    assert "learning a vocabulary of 400 tokens" in lines
    assert info.vocab_size == 400
    assert info.vocabulary_fingerprint == again.vocabulary_fingerprint
    with pytest.raises(UserError, match="learned, 400 pieces"):
        build(config, tmp_path / "out", vocab_size=300)


def test_a_large_vocabulary_makes_rows_of_int32(tmp_path):
    text = write_corpus(tmp_path / "text", make_documents(10))
    vocabulary = write_vocabulary(tmp_path / "vocabulary")
    pieces = vocabulary.read_text().splitlines()
    filler = [f"filler{number}" for number in range(70_000)]
    vocabulary.write_text("\n".join([*pieces[:5], *filler, *pieces[5:]]) + "\n")
    info, _ = build(config_for(text), tmp_path / "out")
    assert info.row_spec.dtype == "int32"
    assert info.max_token_id > 70_000
    assert {token for ids, _ in rows_of(tmp_path / "out", "train") for token in ids} <= {2, 3, *range(70_005, 70_500)}


def test_a_full_disk_is_seen_before_anything_is_written(corpus, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(
        UserError, match=r"has 1.0 kB free, but about .* are needed: free disk space, or choose another --out"
    ):
        build(config_for(corpus), tmp_path / "out")
    assert not (tmp_path / "out").exists()


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


def test_no_permission_gets_one_line(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose an --out that you may write to"):
        build(config_for(corpus), tmp_path / "file" / "out")


def test_two_builds_do_not_write_to_the_same_folder(corpus, tmp_path):
    tmp_path.joinpath("out").mkdir()
    with (
        builder._exclusive(tmp_path / "out"),
        pytest.raises(UserError, match="another process is building"),
    ):
        build(config_for(corpus), tmp_path / "out")


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
    file = shards.dataset_directory(tmp_path / "out", max_seq_length=32) / dataset_info._METADATA_FILE
    file.write_text(json.dumps({}))
    with pytest.raises(UserError, match="cannot be read"):
        load_dataset_info(tmp_path / "out", max_seq_length=32)


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


def test_wikipedia_articles_make_the_data_set_that_the_issue_asks_for(shared_data, tmp_path):
    config = DataConfig(
        input=str(shared_data / "pretrain_en" / "wiki_03"),
        vocab=str(shared_data / "vocab" / "bert-base-uncased-vocab.txt"),
        heldout_fraction=0.1,
        num_workers=2,
    )
    info, _ = build(config, tmp_path / "out", lengths=(128,), vocab_size=30522)
    statistics = info.statistics
    assert statistics["unknown_share"] < 0.001
    assert statistics["padding_share"] < 0.1
    assert 0.46 < statistics["next_sentence_label_share"] < 0.54
    assert statistics["documents"]["validation"] >= 1
    text = load_tokenizer(info.vocab_directory)
    first = rows_of(tmp_path / "out", "train", length=128)[0][0]
    assert text.convert_ids_to_pieces([first[0], first[-1]]) == ["[CLS]", "[SEP]"]
