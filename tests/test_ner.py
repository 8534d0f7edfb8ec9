"""CoNLL columns become rows of whole documents or of sentences; each word is tagged once, at its first piece."""

from pathlib import Path

import numpy as np
import pytest

from bert_jax.config.task_options import DataOptions, NerOptions
from bert_jax.data.tokenization import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.tasks.interface import Split
from bert_jax.tasks.ner import NerTask, Sentence, read_conll
from bert_jax.tasks.scoring import score_predictions
from tests.finetune_data import tokenizer


def ner(folder: Path, *, context: bool = False, max_seq_length: int = 128, **options: object) -> NerTask:
    data = DataOptions(directory=str(folder), max_seq_length=max_seq_length, **options)  # type: ignore[arg-type]
    return NerTask(data=data, ner=NerOptions(document_context=context))


def gold_outputs(task: NerTask, split: Split) -> list[np.ndarray]:
    one_hot = np.eye(len(task.labels), dtype=np.float32)
    return [one_hot[np.maximum(target, 0)] for target in split.features.targets or []]


@pytest.mark.slow
def test_the_shared_files_are_read_whole(shared_data: Path):
    task = ner(shared_data / "conll2003")
    train, dev = task.read("train"), task.read("dev")
    assert (len(train), len(dev)) == (14041, 3250)
    assert sum(len(sentence.words) for sentence in train) == 203621
    assert len({sentence.document for sentence in train}) == 946
    assert task.labels == ("O", *(f"{p}-{t}" for t in ("LOC", "MISC", "ORG", "PER") for p in "BI"))


@pytest.mark.parametrize("context", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_each_word_is_scored_once_and_gold_outputs_score_one(shared_data: Path, context: bool):
    words = load_tokenizer(shared_data / "vocab" / "bert-base-cased-vocab.txt", do_lower_case=False)
    task = ner(shared_data / "conll2003", context=context, max_seq_length=256)
    split = task.load("dev", tokenizer=words)
    placed = [(word.sentence, word.word) for words_of in split.features.alignments for word in words_of]
    assert len(placed) == len(set(placed)) == 51362
    assert max(split.features.lengths) <= 256
    assert len(split.features.ids) < 1000 if context else len(split.features.ids) >= 3250
    figures = task.score(split, gold_outputs(task, split))
    assert figures == {"f1": 1.0, "precision": 1.0, "recall": 1.0, "accuracy": 1.0}
    assert set(task.tables(split, gold_outputs(task, split))) == {"LOC", "MISC", "ORG", "PER"}


def test_the_first_piece_carries_the_tag():
    task = ner(Path())
    vars(task)["labels"] = ("O", "B-PER", "I-PER")
    words = tokenizer()
    sentence = Sentence(("film", "bob", "dob", "the"), ("O", "B-PER", "I-PER", "O"), 0)
    features = task.featurize([sentence], tokenizer=words, training=True)
    assert words.convert_ids_to_pieces(features.ids[0].tolist()) == [
        "[CLS]", "film", "b", "##o", "##b", "d", "##o", "##b", "the", "[SEP]",
    ]  # fmt: skip
    assert (features.targets or [])[0].tolist() == [-1, 0, 1, -1, -1, 2, -1, -1, 0, -1]


def test_in_long_documents_a_word_is_tagged_where_it_has_most_context():
    task = ner(Path(), context=True, max_seq_length=18)
    vars(task)["labels"] = ("O",)
    sentences = [Sentence(("the", "film") * 5, ("O",) * 10, 0) for _ in range(4)] + [Sentence(("good",), ("O",), 1)]
    features = task.featurize(sentences, tokenizer=tokenizer(), training=True)
    contexts: dict[tuple[int, int], list[int]] = {}
    for ids, places in zip(features.ids, features.alignments, strict=True):
        for word in places:
            contexts.setdefault((word.sentence, word.word), []).append(min(word.token - 1, len(ids) - 2 - word.token))
    assert len(contexts) == 41
    assert all(len(found) == 1 for found in contexts.values())
    inner = [found[0] for (sentence, _), found in contexts.items() if sentence in (1, 2)]
    assert min(inner) >= 3  # half of the overlap of eight words
    assert len(features.ids[-1]) == 3  # another document shares no row


def test_words_without_pieces_are_outside():
    task = ner(Path())
    vars(task)["labels"] = ("B-PER", "O")
    sentence = Sentence(("film", "\u200d", "the"), ("O", "O", "O"), 0)
    split = Split("dev", [sentence], task.featurize([sentence], tokenizer=tokenizer(), training=False))
    outputs = [np.zeros((len(split.features.ids[0]), 2), np.float32)]
    assert task.predicted_tags(split, outputs) == [["B-PER", "O", "B-PER"]]


def test_written_predictions_are_what_conlleval_reads(tmp_path: Path):
    folder = tmp_path
    (folder / "eng.train").write_text("-DOCSTART- -X- O O\n\nBob NNP I-NP I-PER\nsat VBD I-VP O\n\n")
    (folder / "eng.testa").write_text("Bob NNP I-NP I-PER\nDob NNP I-NP B-PER\nsat VBD I-VP O\n\nBob NNP I-NP I-PER\n")
    task = ner(folder)
    split = task.load("dev", tokenizer=tokenizer())
    outputs = gold_outputs(task, split)
    outputs[1][:, task.labels.index("O")] = 9
    path = task.write_predictions(split, outputs, directory=folder / "out")[0]
    assert path.read_text() == "Bob B-PER B-PER\nDob B-PER B-PER\nsat O O\n\nBob B-PER O\n"
    figures = score_predictions(task="ner", predictions=str(path), data=str(folder / "eng.testa"))
    assert (figures["precision"], figures["recall"]) == (1.0, pytest.approx(2 / 3))
    assert task.mistakes(split, outputs, count=5) == [{"text": "Bob", "missed": ["PER: Bob"], "invented": []}]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("Bob NNP I-NP I-PER\nsat VBD O\n", "line 2: 3 columns, expected 4"),
        ("Bob NNP I-NP PER\nsat VBD I-VP I-PER\n", "line 1: tag 'PER' is not O, B-TYPE or I-TYPE"),
        ("Bob B-PER\nsat o\n", "line 2: tag 'o' is not O, B-TYPE or I-TYPE"),
        ("Bob sat .\tB-PER O O\n", "line 1: 'B-PER O O' is not a tag: .* for a sentence per line use"),
        ("a\tO\n\tB-PER\n", "line 2: the word is empty"),
        ("Bob\n", "line 1: 1 column, expected 2"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, content: str, match: str):
    (tmp_path / "eng.train").write_text(content)
    with pytest.raises(UserError, match=match):
        read_conll(tmp_path / "eng.train", tag_column=-1)
    (tmp_path / "eng.train").write_text("Bob NNP I-NP I-PER\n")
    (tmp_path / "eng.testa").write_text("-DOCSTART- -X- O O\n\nin IN I-PP O\nRome NNP I-NP I-LOC\n")
    match = r"eng.testa sentence at line 3: unknown label 'I-LOC' \(word 2, 'Rome'\); train has O, PER: fix the tag"
    with pytest.raises(UserError, match=match):
        ner(tmp_path).load("dev", tokenizer=tokenizer())
    with pytest.raises(UserError, match=r"config.ner.tag_column=5: .* has 4 columns"):
        read_conll(tmp_path / "eng.train", tag_column=5)
