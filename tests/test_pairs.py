import random

import numpy as np
import pytest

from bert_jax.data.pairs import (
    Instances,
    TokenizedDocuments,
    make_instances,
)
from bert_jax.errors import UserError

VOCAB_SIZE = 1000
WORD_STARTS = np.arange(VOCAB_SIZE) % 3 > 0  # a third of the pieces go on within a word


def pack(documents, *, keys=None, num_own=None):
    """Return lists of lists of ids as `TokenizedDocuments`."""
    segments = [segment for document in documents for segment in document]
    return TokenizedDocuments(
        ids=np.array([number for segment in segments for number in segment], np.uint16),
        segment_bounds=np.cumsum([0, *map(len, segments)]),
        document_bounds=np.cumsum([0, *map(len, documents)]),
        keys=np.array(keys if keys is not None else range(len(documents)), np.uint64),
        num_own=len(documents) if num_own is None else num_own,
    )


def random_documents(seed, *, count=40, max_sentences=30, max_tokens=40):
    """Return documents of very different sizes: single sentences, one-token sentences, sentences longer than a row."""
    rng = random.Random(seed)
    return [
        [
            [rng.randrange(VOCAB_SIZE) for _ in range(rng.choice((1, 5, max_tokens, max_tokens * 6)))]
            for _ in range(rng.choice((1, 2, rng.randint(1, max_sentences))))
        ]
        for _ in range(count)
    ]


def make(documents, **changes) -> Instances:
    settings = {"max_seq_length": 64, "objective": "mlm+nsp", "recipe": "modern", "short_seq_prob": 0.1, **changes}
    rng = random.Random(settings.pop("seed", 1))
    return make_instances(documents, rng=rng, word_starts=WORD_STARTS, **settings)


def pairs_as_tokens(documents, instances):
    ids = documents.ids.tolist()
    return [
        (ids[a:a_end], ids[b:b_end], int(label))
        for (a, a_end), (b, b_end), label in zip(
            instances.a.tolist(), instances.b.tolist(), instances.labels.tolist(), strict=True
        )
    ]


def join(segments):
    return [token for segment in segments for token in segment]


class PublishedAlgorithm:
    """Describe create_instances_from_document and truncate_seq_pair of the original in terms of lists, without masking.

    Written from their description, to share nothing with pairs.py: segments move between lists, nothing is an offset.
    """

    def __init__(self, documents, max_seq_length, short_seq_prob, rng):
        self.documents, self.rng = documents, rng
        self.room = max_seq_length - 3
        self.short_seq_prob = short_seq_prob

    def run(self):
        return [pair for number in range(len(self.documents)) for pair in self.document(number)]

    def document(self, number):
        target = self.room if self.rng.random() >= self.short_seq_prob else self.rng.randint(2, self.room)
        waiting = list(self.documents[number])
        while waiting:
            chunk = [waiting.pop(0)]
            while waiting and sum(map(len, chunk)) < target:
                chunk.append(waiting.pop(0))
            size_a = self.rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
            side_a, rest = join(chunk[:size_a]), chunk[size_a:]
            if not rest or self.rng.random() < 0.5:
                side_b, label = self.foreign(number, target - len(side_a)), 1
                waiting = rest + waiting
            else:
                side_b, label = join(rest), 0
            self.shorten(side_a, side_b)
            yield side_a, side_b, label

    def foreign(self, number, wanted):
        for _ in range(10):
            other = self.rng.randint(0, len(self.documents) - 1)
            if other != number:
                break
        source = self.documents[other]
        side = []
        for segment in source[self.rng.randint(0, len(source) - 1) :]:
            side += segment
            if len(side) >= wanted:
                break
        return side

    def shorten(self, side_a, side_b):
        while len(side_a) + len(side_b) > self.room:
            longer = side_a if len(side_a) > len(side_b) else side_b
            longer.pop(0 if self.rng.random() < 0.5 else -1)


@pytest.mark.parametrize("max_seq_length", [16, 64, 128])
@pytest.mark.parametrize("short_seq_prob", [0.0, 0.1, 1.0])
def test_recipe_original_makes_the_pairs_of_the_published_algorithm(max_seq_length, short_seq_prob):
    for seed in range(8):
        documents = random_documents(seed)
        wanted = PublishedAlgorithm(documents, max_seq_length, short_seq_prob, random.Random(seed)).run()
        packed = pack(documents)
        found = make(packed, recipe="original", max_seq_length=max_seq_length, short_seq_prob=short_seq_prob, seed=seed)
        assert pairs_as_tokens(packed, found) == wanted
        assert len(wanted) > 50


@pytest.mark.parametrize("recipe", ["original", "modern"])
def test_pairs_never_draw_random_next_from_the_same_document(recipe):
    # Two documents only, one of them in three parts: a draw in a thousand of the original's would stay in the document.
    documents = [[[number] * 5] * 40 for number in (1, 1, 1, 2)]
    packed = pack(documents, keys=[7, 7, 7, 8])
    for seed in range(50):
        for a, b, label in pairs_as_tokens(packed, make(packed, recipe=recipe, seed=seed)):
            assert label == (a[0] != b[0])


@pytest.mark.parametrize("recipe", ["original", "modern"])
def test_donors_give_random_next_but_no_instances_of_their_own(recipe):
    packed = pack([[[1] * 5] * 40, [[2] * 5] * 40], keys=[7, 8], num_own=1)
    found = pairs_as_tokens(packed, make(packed, recipe=recipe))
    assert {a[0] for a, _, _ in found} == {1}
    assert {b[0] for _, b, _ in found} == {1, 2}


def test_modern_labels_are_a_fair_coin_where_the_original_has_too_many_random_ones():
    documents = random_documents(3, count=1500, max_sentences=8, max_tokens=12)
    documents_with_pairs = pack([document for document in documents if len(document) > 1])  # one has only a random B
    modern = make(documents_with_pairs, max_seq_length=128).labels
    original = make(documents_with_pairs, max_seq_length=128, recipe="original").labels
    five_sigma = 5 * 0.5 / np.sqrt(len(modern))
    assert abs(modern.mean() - 0.5) < five_sigma
    assert original.mean() > 0.5 + 2 * five_sigma


def test_true_next_segments_follow_each_other_in_one_document():
    packed = pack(random_documents(4))
    ends = packed.segment_bounds[packed.document_bounds]
    for recipe in ("original", "modern"):
        # Rows are long enough that nothing is truncated.
        found = make(packed, recipe=recipe, max_seq_length=4096, short_seq_prob=0.0)
        true_next = found.labels == 0
        assert true_next.any()
        assert (found.a[true_next, 1] == found.b[true_next, 0]).all()
        document = np.searchsorted(ends, found.a[true_next, 0], side="right")
        assert (document == np.searchsorted(ends, found.b[true_next, 1] - 1, side="right")).all()


def test_sentence_order_pairs_are_neighbours_and_half_of_them_swapped():
    packed = pack(random_documents(5, count=800))
    found = make(packed, objective="mlm+sop", max_seq_length=8192, short_seq_prob=0.0)
    swapped = found.labels == 1
    assert (found.b[swapped, 1] == found.a[swapped, 0]).all()
    assert (found.a[~swapped, 1] == found.b[~swapped, 0]).all()
    assert abs(swapped.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(swapped))


def test_sentence_order_skips_documents_of_one_sentence_only():
    packed = pack([[[1] * 9], [[2] * 9, [3] * 200], [[4] * 300, [5] * 9]])
    found = pairs_as_tokens(packed, make(packed, objective="mlm+sop"))
    assert {frozenset((a[0], b[0])) for a, b, _ in found} == {frozenset((2, 3)), frozenset((4, 5))}


@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp", "mlm+sop"])
@pytest.mark.parametrize("recipe", ["original", "modern"])
@pytest.mark.parametrize("max_seq_length", [8, 17, 128])
def test_instances_fit_the_row_and_no_segment_is_empty(objective, recipe, max_seq_length):
    packed = pack(random_documents(6))
    found = make(packed, objective=objective, recipe=recipe, max_seq_length=max_seq_length)
    length_a, length_b = found.a[:, 1] - found.a[:, 0], found.b[:, 1] - found.b[:, 0]
    assert (length_a > 0).all()
    assert (length_b == 0).all() if objective == "mlm" else (length_b > 0).all()
    assert (length_a + length_b).max() == max_seq_length - (2 if objective == "mlm" else 3)


def test_single_segments_hold_every_token_once_and_break_no_word():
    documents = random_documents(7)
    packed = pack(documents)
    found = make(packed, objective="mlm", max_seq_length=66)
    assert [token for a, _, _ in pairs_as_tokens(packed, found) for token in a] == packed.ids.tolist()
    document_starts = set(packed.segment_bounds[packed.document_bounds].tolist())
    for start in found.a[:, 0].tolist():
        assert start in document_starts or WORD_STARTS[packed.ids[start]]
    assert not found.labels.any()


def test_a_word_longer_than_the_row_is_cut():
    packed = pack([[[1] + [3] * 200], [[1, 2]]])  # 3 goes on within a word
    found = make(packed, objective="mlm", max_seq_length=34, short_seq_prob=0.0)
    assert (found.a[:, 1] - found.a[:, 0]).tolist() == [32, 32, 32, 32, 32, 32, 9, 2]


@pytest.mark.parametrize(("recipe", "lengths_a_document"), [("original", 1), ("modern", 20)])
def test_target_length_is_drawn_once_a_document_or_once_an_instance(recipe, lengths_a_document):
    packed = pack([[[1] * 4000]] * 30)  # every piece begins a word
    found = make(packed, objective="mlm", recipe=recipe, short_seq_prob=1.0, max_seq_length=128)
    full = found.a[:, 1] % 4000 > 0  # not the last of a document
    document = found.a[:, 0] // 4000
    lengths = [set(np.diff(found.a[full & (document == number)]).ravel().tolist()) for number in range(30)]
    if recipe == "original":
        assert {len(found) for found in lengths} == {lengths_a_document}
        assert len(set.union(*lengths)) > 15
    else:
        assert min(map(len, lengths)) > lengths_a_document


@pytest.mark.parametrize("short_seq_prob", [0.0, 0.1])
def test_short_rows_have_the_share_asked_for(short_seq_prob):
    packed = pack([[[1] * 100_000]] * 20)
    found = make(packed, objective="mlm", short_seq_prob=short_seq_prob)
    short = np.diff(found.a).ravel() < 62
    # 20 last rows of documents are short as well; a draw of the full length among the short ones is one in 61.
    assert abs(short.sum() - short_seq_prob * len(found) * 60 / 61 - 20) <= 5 * np.sqrt(0.09 * len(found))


@pytest.mark.parametrize("recipe", ["original", "modern"])
def test_a_corpus_of_one_document_gets_one_clear_line(recipe):
    packed = pack([[[1, 2], [3, 4]]] * 2, keys=[5, 5])
    with pytest.raises(UserError, match="give more documents, or set"):
        make(packed, recipe=recipe)
    assert len(make(packed, objective="mlm")) == 2


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="nsp"):
        make(pack(random_documents(1)), objective="nsp")
