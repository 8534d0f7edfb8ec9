import dataclasses
import subprocess
import sys

import pytest
from built_datasets import LENGTH, build, config_for, content, make_corpus, markers_of, rows_of, use_small_shards
from text_corpus import make_documents, marker, write_corpus, write_vocabulary

from bert_jax.config import DataConfig
from bert_jax.data import shards
from bert_jax.data.builder import load_dataset_info
from bert_jax.data.loader import PretrainingBatches
from bert_jax.data.tokenization import load_tokenizer
from bert_jax.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_bytes_do_not_depend_on_the_number_of_workers(corpus, tmp_path, monkeypatch):
    use_small_shards(monkeypatch)
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


def test_shards_of_one_long_document_borrow_random_next_from_others(tmp_path, monkeypatch):
    use_small_shards(monkeypatch)
    long = [" ".join(["to be or not"] * 20) + " baloeru." for _ in range(16_000)]  # 1.4 MB: comes in parts
    text = write_corpus(tmp_path / "text", [long, *make_documents(12)[1:]], num_files=1)
    write_vocabulary(tmp_path / "vocabulary")
    info, _ = build(config_for(text, heldout_fraction=0.01), tmp_path / "out")
    assert info.statistics["documents"]["train"] + info.statistics["documents"]["validation"] == 12
    assert 0.48 < info.statistics["next_sentence_label_share"] < 0.52


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
