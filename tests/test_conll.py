"""Files in columns: the words are words, comments are skipped, every scheme of tags is read, scores are conlleval's."""

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from bert_jax.config.task_options import DataOptions, NerOptions
from bert_jax.errors import UserError
from bert_jax.tasks.conll import read_conll
from bert_jax.tasks.entity_metrics import entities, score_entities
from bert_jax.tasks.ner import NerTask
from bert_jax.tasks.scoring import score_predictions
from tests.finetune_data import tokenizer

COMMENTED = "# sent_id = 0\n# text = Bob sat\n1\tBob\tB-PER\tO\n2\tsat\tO\tO\n\n# sent_id = 1\n1\t#\tO\tO\n2\tx\tO\tO\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "train.txt"
    path.write_text(text)
    return path


def ner(folder: Path, **options: object) -> NerTask:
    return NerTask(data=DataOptions(directory=str(folder), max_seq_length=40), ner=NerOptions(**options))  # type: ignore[arg-type]


def test_comments_are_skipped_and_a_word_may_be_a_number_sign(tmp_path: Path):
    sentences = read_conll(write(tmp_path, COMMENTED), tag_column=2, word_column=1)
    assert [s.words for s in sentences] == [("Bob", "sat"), ("#", "x")]
    spaces = "# id = 1\nBob NNP x B-PER\n# # x O\n\n# a comment\n#tag NN x O\n"
    assert [s.words for s in read_conll(write(tmp_path, spaces), tag_column=-1)] == [("Bob", "#"), ("#tag",)]
    assert [s.words for s in read_conll(write(tmp_path, "# O\nBob B-PER\n"), tag_column=-1)] == [("#", "Bob")]


@pytest.mark.parametrize(
    ("text", "columns", "match"),
    [
        (COMMENTED, {}, r"the words \(column 0\) are their numbers: 1, 2: .*--config.ner.word_column"),
        ("0 a O\n1 b B-X\n\n2 c O\n3 d O\n", {}, r"the words \(column 0\) are their numbers"),
        ("B-PER\tJon\nO\tsat\n", {}, r"the words \(column 0\) are tags: B-PER, O"),
        ("B-PER\tJon\nO\tsat\n", {"tag_column": 0}, r"the words \(column 0\) are tags"),
        ("Jon B-PER\n", {"word_column": 2}, r"config.ner.word_column=2: .* has 2 columns"),
    ],
)
def test_a_column_of_numbers_or_tags_is_never_learned_as_words(
    tmp_path: Path, text: str, columns: dict[str, int], match: str
):
    write(tmp_path, text)
    with pytest.raises(UserError, match=match) as error:
        ner(tmp_path, **columns).read("train")
    assert "\n" not in str(error.value)
    assert read_conll(write(tmp_path, "1984 B-X\nwas O\n"), tag_column=-1)[0].words == ("1984", "was")


def test_columns_are_separated_by_tabs_only_where_every_line_has_one(tmp_path: Path):
    assert read_conll(write(tmp_path, "New York\tB-LOC\n10\u00a0000\tO\n"), tag_column=-1)[0].words == (
        "New York",
        "10\u00a0000",
    )
    assert read_conll(write(tmp_path, "York B-LOC\n10\u00a0000 O\na\tO\n"), tag_column=-1)[0].words == (
        "York",
        "10\u00a0000",
        "a",
    )


@pytest.mark.parametrize(
    "tags",
    ["O S-LOC B-PER I-PER E-PER S-PER", "O U-LOC B-PER I-PER L-PER U-PER", "O S-LOC B-PER M-PER E-PER S-PER"],
)
def test_every_scheme_with_prefixes_is_read_as_iob2(tmp_path: Path, tags: str):
    lines = "".join(f"w{i} {tag}\n" for i, tag in enumerate(tags.split()))
    (tmp_path / "train.txt").write_text(lines)
    task = ner(tmp_path)
    sentence = task.read("train")[0]
    assert sentence.tags == ("O", "B-LOC", "B-PER", "I-PER", "I-PER", "B-PER")
    assert task.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert "read as B and I" in task.notes(task.load("train", tokenizer=tokenizer()))[0]


def test_one_content_is_the_same_in_two_hundred_forms(tmp_path: Path):
    """Schemes, separators, order of columns, comments, documents, line ends and byte order marks."""
    rng = random.Random(0)
    forms = {"IOB1": {}, "IOB2": {}, "BIOES": {"last": "E", "single": "S"}, "BILOU": {"last": "L", "single": "U"}}
    for number in range(200):
        spans = [[("O", 1), ("PER", 2), ("LOC", 1)], [("PER", 1), ("PER", 3), ("O", 2)]]
        scheme, tabs = rng.choice(list(forms)), rng.random() < 0.5
        mark = "\t" if tabs else rng.choice([" ", "  ", " \t"])
        order = rng.sample(["index", "pos", "tag", "word"], 4)
        lines, expected = [], []
        for sentence in spans:
            lines += rng.choice([[], ["# text = a b"], ["-DOCSTART- -X- O O", ""], ["#comment"]])
            gold, previous = [], ""
            for kind, size in sentence:
                gold += ["O"] if kind == "O" else []
                tags = entity_tags(kind, size, previous=previous, iob1=scheme == "IOB1", **forms[scheme])
                previous = kind
                for tag in tags:
                    word = rng.choice(["Bob", "x", "#", "1902", "10\u00a0000"])
                    fields = {"index": str(len(gold)), "pos": "NN", "tag": tag, "word": word}
                    lines.append(mark.join(fields[name] for name in order))
                gold += [] if kind == "O" else [f"B-{kind}", *[f"I-{kind}"] * (size - 1)]
                gold += ["O"] * (size - 1) if kind == "O" else []
            expected.append(tuple(gold))
            lines.append(rng.choice(["", "  "]))
        text = rng.choice(["\n", "\r\n"]).join(lines)
        path = tmp_path / "train.txt"
        path.write_bytes(text.encode(rng.choice(["utf-8", "utf-8-sig"])))
        found = read_conll(path, tag_column=order.index("tag"), word_column=order.index("word"))
        assert [sentence.tags for sentence in found] == expected, (number, text)


def entity_tags(kind: str, size: int, *, previous: str, iob1: bool, last: str = "I", single: str = "B") -> list[str]:
    """Return the tags of `size` words of one entity, or outside of all."""
    if kind == "O":
        return ["O"] * size
    if iob1:
        return [f"{'B' if previous == kind else 'I'}-{kind}", *[f"I-{kind}"] * (size - 1)]
    return [f"{single}-{kind}"] if size == 1 else [f"B-{kind}", *[f"I-{kind}"] * (size - 2), f"{last}-{kind}"]


def test_bioes_entities_equal_seqevals():
    sequence_labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    scheme = pytest.importorskip("seqeval.scheme").IOBES
    rng = np.random.default_rng(0)
    for _ in range(50):
        tags: list[str] = []
        while len(tags) < 12:
            kind, size = rng.choice(["PER", "LOC"]), int(rng.integers(0, 4))
            tags += [["O"], [f"S-{kind}"], [f"B-{kind}", f"E-{kind}"], [f"B-{kind}", f"I-{kind}", f"E-{kind}"]][size]
        expected = sequence_labeling.get_entities(tags) if scheme else []
        assert [(e.type, e.start, e.end - 1) for e in entities(tags)] == [tuple(item) for item in expected]


def test_tags_without_prefixes_are_scored_by_word_and_selected_by_accuracy(tmp_path: Path):
    sklearn = pytest.importorskip("sklearn.metrics")
    for name in ("train", "dev"):
        (tmp_path / f"{name}.txt").write_text("the DT\nfilm NN\nwas VBD\n\nit PRP\nwas VBD\n")
    task = ner(tmp_path, document_context=False)
    split = task.load("dev", tokenizer=tokenizer())
    assert (task.labels, task.selection) == (("DT", "NN", "PRP", "VBD"), "accuracy")
    outputs = [np.eye(4, dtype=np.float32)[np.maximum(target, 0)] for target in split.features.targets or []]
    for output in outputs:
        output[1] = np.eye(4)[1]  # the first word is always NN
    gold, predicted = ["DT", "NN", "VBD", "PRP", "VBD"], ["NN", "NN", "VBD", "NN", "VBD"]
    scores = task.score(split, outputs)
    assert scores["accuracy"] == pytest.approx(0.6)
    assert scores["macro_f1"] == pytest.approx(sklearn.f1_score(gold, predicted, average="macro"))
    nouns = task.tables(split, outputs)["NN"]
    assert nouns == {"precision": 1 / 3, "recall": 1.0, "f1": 0.5, "gold": 1, "predicted": 3, "correct": 1}
    assert task.mistakes(split, outputs, count=1) == [{"text": "the film was", "wrong": ["the: DT, not NN"]}]
    path = task.write_predictions(split, outputs, directory=tmp_path / "out")[0]
    record = score_predictions(task="ner", predictions=path, data=tmp_path / "dev.txt")
    assert (record["accuracy"], record["found_NN"]) == (pytest.approx(0.6), 3)


@pytest.mark.parametrize(
    ("tags", "found", "right"),
    [
        (('"B-PER"', '"I-PER"', '"O"'), '"B-PER"', "B-PER"),
        (("\u201cB-PER\u201d", "O", "O"), "\u201cB-PER\u201d", "B-PER"),
        (("b-per", "i-per", "o"), "b-per", "B-per"),
        (("B_PER", "I_PER", "O"), "B_PER", "B-PER"),
        (("b:per", "o", "s:loc"), "b:per", "B-per"),
        (("O", "PER-B", "PER-I"), "PER-B", "B-PER"),
        (("O", "I/PER", "I/PER"), "I/PER", "I-PER"),
        (("'NN'", "'VB'", "'DT'"), "'DT'", "DT"),
    ],
)
def test_entities_in_another_spelling_are_refused(tmp_path: Path, tags: tuple[str, ...], found: str, right: str):
    """They would be read as tags without prefixes, scored by accuracy."""
    write(tmp_path, "".join(f"word {tag}\n" for tag in tags))
    with pytest.raises(UserError) as error:
        ner(tmp_path).read("train")
    expected = f"train.txt line {tags.index(found) + 1}: tag {found!r} looks like {right!r} in another spelling"
    assert expected in str(error.value)


@pytest.mark.parametrize(
    "tags",
    ["NN VBD DT", "m-sg m-pl O", "NP-TL NN-HL B_", "PER LOC O", "B_PER NN O", "`` '' NN", "O LOC-B LOC", "'' '' \"\""],
)
def test_tags_without_prefixes_stay_as_they_are(tmp_path: Path, tags: str):
    write(tmp_path, "".join(f"word {tag}\n" for tag in tags.split()))
    assert [tag for sentence in ner(tmp_path).read("train") for tag in sentence.tags] == tags.split()


def test_an_entity_of_type_o_is_refused(tmp_path: Path):
    write(tmp_path, "Bob B-PER\nsat B-O\n")
    with pytest.raises(UserError, match=r"train.txt line 2: tag 'B-O' is an entity of type O, which means no entity"):
        ner(tmp_path).read("train")


def test_scores_have_all_that_conlleval_prints(tmp_path: Path):
    """Accuracy over all words, and precision, recall, F1 and counts per type; the data's word column is found."""
    gold = "1\tBob\tB-PER\n2\tDob\tI-PER\n3\tsat\tO\n\n1\tin\tO\n2\tOslo\tB-LOC\n"
    (tmp_path / "dev.txt").write_text(gold)
    (tmp_path / "predicted.txt").write_text("Bob B-PER B-PER\nDob I-PER O\nsat O B-LOC\n\nin O O\nOslo B-LOC B-LOC\n")
    record = score_predictions(task="ner", predictions=tmp_path / "predicted.txt", data=tmp_path / "dev.txt")
    assert record == {
        "f1": pytest.approx(0.4), "precision": pytest.approx(1 / 3), "recall": 0.5, "accuracy": pytest.approx(0.6),
        "words": 5, "entities": 2, "found": 3, "correct": 1,
        "precision_LOC": 0.5, "recall_LOC": 1.0, "f1_LOC": pytest.approx(2 / 3), "gold_LOC": 1, "found_LOC": 2,
        "precision_PER": 0.0, "recall_PER": 0.0, "f1_PER": 0.0, "gold_PER": 1, "found_PER": 1,
    }  # fmt: skip
    (tmp_path / "predicted.txt").write_text("Bob B-PER I-PER\nDob I-PER I-PER\nsat O O\n\nin O O\nOslo B-LOC B-LOC\n")
    record = score_predictions(task="ner", predictions=tmp_path / "predicted.txt", data=tmp_path / "dev.txt")
    assert (record["f1"], record["accuracy"]) == (1, 0.8)  # as conlleval: I-PER begins an entity, and is another tag
    assert score_entities([["B-X"]], gold=[["B-X"]]).overall.gold == 1


def test_words_with_spaces_are_written_so_that_they_are_read_back(tmp_path: Path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.txt").write_text("New York\tB-LOC\nwas\tO\n")
    task = ner(tmp_path)
    split = task.load("dev", tokenizer=tokenizer())
    outputs = [np.eye(3, dtype=np.float32)[np.maximum(target, 0)] for target in split.features.targets or []]
    path = task.write_predictions(split, outputs, directory=tmp_path / "out")[0]
    assert path.read_text() == "New York\tB-LOC\tB-LOC\nwas\tO\tO\n"
    assert score_predictions(task="ner", predictions=path, data=tmp_path / "dev.txt")["f1"] == 1


def test_a_file_without_marks_of_documents_has_a_document_per_sentence(tmp_path: Path):
    write(tmp_path, "Bob B-PER\nsat O\n\nJon B-PER\n\n\nran O\n")
    task = ner(tmp_path)
    assert [sentence.document for sentence in task.read("train")] == [0, 1, 2]
    split = task.load("train", tokenizer=tokenizer())
    assert len(split.features.ids) == 3  # no window spans sentences that nothing joins
    assert "each sentence of train is one, without context" in task.notes(split)[-1]


@pytest.mark.parametrize("mark", ["-DOCSTART- O", "# newdoc id = 7", "# newdoc"])
def test_marks_of_documents_are_read(tmp_path: Path, mark: str):
    tab = mark.replace(" O", "\tO")
    write(tmp_path, f"{tab}\n\nBob\tB-PER\nsat\tO\n\nJon\tB-PER\n\n{tab}\nran\tO\n")
    task = ner(tmp_path)
    assert [sentence.document for sentence in task.read("train")] == [0, 0, 1]
    split = task.load("train", tokenizer=tokenizer())
    assert len(split.features.ids) == 2
    assert "2 of train" in task.notes(split)[-1]


def test_a_sample_of_train_has_whole_documents(tmp_path: Path):
    sizes = [3, 5, 1, 4, 2, 6]
    documents = ["-DOCSTART- O\n\n" + f"w{number} B-PER\n\n" * size for number, size in enumerate(sizes)]
    write(tmp_path, "".join(documents))
    whole = ner(tmp_path).read("train")
    kept = set()
    for seed in range(5):
        data = DataOptions(directory=str(tmp_path), max_train_examples=8, seed=seed)
        sample = NerTask(data=data, ner=NerOptions()).sample(whole, limit=8)
        counts = {number: sum(s.document == number for s in sample) for number in range(len(sizes))}
        assert all(count in (0, sizes[number]) for number, count in counts.items())
        assert 0 < len(sample) <= 8
        kept.add(tuple(counts.values()))
    assert len(kept) > 1
    small = NerTask(data=DataOptions(directory=str(tmp_path)), ner=NerOptions()).sample(whole[:8], limit=2)
    assert len({s.document for s in small}) == 1  # the beginning of a document: no holes
    alone = NerTask(data=DataOptions(directory=str(tmp_path)), ner=NerOptions(document_context=False))
    assert len(alone.sample(whole, limit=8)) == 8


def test_memory_does_not_grow_with_the_square_of_a_document(tmp_path: Path):
    write(tmp_path, "-DOCSTART- O\n\n" + ("the O\nfilm B-PER\n" * 10 + "\n") * 600)
    task = ner(tmp_path)
    sentences, words = task.read("train"), tokenizer()
    tracemalloc.start()
    features = task.featurize(sentences, tokenizer=words, training=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tokens = sum(len(ids) for ids in features.ids)
    # Python's objects take less than 1 kB a token; a score per window and word took 8 bytes x 650 windows.
    assert peak < 1000 * tokens
    assert len(features.ids) > 600
