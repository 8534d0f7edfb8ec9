"""Truncate a pair of segments that is too long, token by token from the longer segment.

Of two equally long segments the second one is cut (`truncate_seq_pair` of google-research/bert's
create_pretraining_data.py, `_truncate_seq_pair` of its run_classifier.py). The original's loops are replaced by a
closed form, so the cost does not depend on how long the pair is.
"""

import random

Spans = tuple[int, int, int, int]  # start and end of A, start and end of B

HEAD, HEAD_TAIL = "head", "head_tail"  # what is read of a text that is too long


def tokens_to_cut(length_a: int, length_b: int, *, limit: int) -> tuple[int, int]:
    """Return how many tokens A and B lose until they have at most `limit` tokens together."""
    excess = max(length_a + length_b - limit, 0)
    from_longer = min(excess, abs(length_a - length_b))
    rest = excess - from_longer  # both are equally long now and alternate, B first
    from_a, from_b = rest // 2, rest - rest // 2
    return (from_a + from_longer, from_b) if length_a > length_b else (from_a, from_b + from_longer)


def truncate_pair(a: list[int], b: list[int], *, limit: int, truncation: str = HEAD) -> tuple[list[int], list[int]]:
    """Return A and B with at most `limit` tokens together, each truncated: for fine-tuning and prediction."""
    from_a, from_b = tokens_to_cut(len(a), len(b), limit=limit)
    first = truncate_single(a, limit=len(a) - from_a, truncation=truncation)
    return first, truncate_single(b, limit=len(b) - from_b, truncation=truncation)


def truncate_single(tokens: list[int], *, limit: int, truncation: str = HEAD) -> list[int]:
    """Return at most `limit` tokens: the first ones, or with `head_tail` a quarter of them and the last tokens.

    For 510 tokens that is 128 and 382, the best choice of Sun et al. 2019 (How to fine-tune BERT, section 5.3.1).
    """
    if len(tokens) <= limit or truncation != HEAD_TAIL:
        return tokens[:limit]
    head = (limit + 2) // 4
    return tokens[:head] + tokens[len(tokens) - (limit - head) :]


def windows(tokens: list[int], *, limit: int) -> list[list[int]]:
    """Return consecutive windows of `limit` tokens. The last one starts early enough to be whole."""
    if len(tokens) <= limit:
        return [tokens]
    starts = [*range(0, len(tokens) - limit, limit), len(tokens) - limit]
    return [tokens[start : start + limit] for start in starts]


def truncate_spans(spans: Spans, *, limit: int, rng: random.Random) -> Spans:
    """Return spans of at most `limit` tokens together, a fair coin per token decides between front and back.

    For pre-training, recipe `modern`: all coins of a segment are sampled at once.
    """
    a, a_end, b, b_end = spans
    from_a, from_b = tokens_to_cut(a_end - a, b_end - b, limit=limit)
    if not from_a + from_b:
        return spans
    return _cut(spans, from_a, from_b, rng.getrandbits(from_a).bit_count(), rng.getrandbits(from_b).bit_count())


def truncate_spans_one_by_one(spans: Spans, *, limit: int, rng: random.Random) -> Spans:
    """Return spans like `truncate_spans`, sampling one coin per token in the order of the original.

    For pre-training, recipe `original`.
    """
    a, a_end, b, b_end = spans
    from_a, from_b = tokens_to_cut(a_end - a, b_end - b, limit=limit)
    coins = [rng.random() < 0.5 for _ in range(from_a + from_b)]
    turns = min(len(coins), abs((a_end - a) - (b_end - b)))  # coins of the longer segment before they alternate
    fronts_a, fronts_b = sum(coins[turns + 1 :: 2]), sum(coins[turns::2])
    if a_end - a > b_end - b:
        fronts_a += sum(coins[:turns])
    else:
        fronts_b += sum(coins[:turns])
    return _cut(spans, from_a, from_b, fronts_a, fronts_b)


def _cut(spans: Spans, from_a: int, from_b: int, fronts_a: int, fronts_b: int) -> Spans:
    a, a_end, b, b_end = spans
    return a + fronts_a, a_end - (from_a - fronts_a), b + fronts_b, b_end - (from_b - fronts_b)
