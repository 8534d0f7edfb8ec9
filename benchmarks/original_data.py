"""The original's algorithm from text to instances, with its data structures: the peer in data_set.py.

It is that of google-research/bert's tokenization.py and create_pretraining_data.py with dupe_factor 1. Text is
processed character by character. All documents are in memory as lists of strings, and so are instances. Masks are
sampled while the data are made. Features are lists of numbers; the original also writes them to TFRecord files.
"""

import random
import unicodedata
from collections.abc import Iterable
from pathlib import Path


def _is_white(char: str) -> bool:
    return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def _is_control(char: str) -> bool:
    return char not in "\t\n\r" and unicodedata.category(char) in ("Cc", "Cf")


def _is_punctuation(char: str) -> bool:
    code = ord(char)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(char).startswith("P")


def _is_cjk(code: int) -> bool:
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B73F
        or 0x2B740 <= code <= 0x2B81F
        or 0x2B820 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )


class PurePythonTokenizer:
    """The original's tokenizer, which lower-cases and returns strings."""

    def __init__(self, vocabulary: dict[str, int]):
        self.vocabulary = vocabulary

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a line."""
        tokens = []
        for word in self._words(text):
            tokens.extend(self._word_tokens(word))
        return tokens

    def _words(self, text: str) -> list[str]:
        cleaned = []
        for char in text:
            code = ord(char)
            if code == 0 or code == 0xFFFD or _is_control(char):
                continue
            cleaned.append(" " if _is_white(char) else char)
        spaced = []
        for char in "".join(cleaned):
            if _is_cjk(ord(char)):
                spaced += [" ", char, " "]
            else:
                spaced.append(char)
        words = []
        for token in "".join(spaced).strip().split():
            stripped = [
                char for char in unicodedata.normalize("NFD", token.lower()) if unicodedata.category(char) != "Mn"
            ]
            words.extend(self._split_at_punctuation("".join(stripped)))
        return str.split(" ".join(words).strip())

    @staticmethod
    def _split_at_punctuation(token: str) -> list[str]:
        parts: list[list[str]] = []
        is_new = True
        for char in token:
            if _is_punctuation(char):
                parts.append([char])
                is_new = True
            else:
                if is_new:
                    parts.append([])
                is_new = False
                parts[-1].append(char)
        return ["".join(part) for part in parts]

    def _word_tokens(self, word: str) -> list[str]:
        chars = list(word)
        if len(chars) > 200:
            return ["[UNK]"]
        tokens, start = [], 0
        while start < len(chars):
            end = len(chars)
            match = None
            while start < end:
                candidate = "".join(chars[start:end])
                if start > 0:
                    candidate = "##" + candidate
                if candidate in self.vocabulary:
                    match = candidate
                    break
                end -= 1
            if match is None:
                return ["[UNK]"]
            tokens.append(match)
            start = end
        return tokens


def make_features(
    files: Iterable[Path], *, vocabulary_file: Path, max_seq_length: int, max_predictions: int, seed: int = 12345
) -> int:
    """Make all instances of `files` (one sentence per line, blank lines between documents). Return their number."""
    entries = vocabulary_file.read_text(encoding="utf-8").split("\n")
    vocabulary = {entry.strip(): number for number, entry in enumerate(entries) if entry.strip()}
    tokenizer, rng = PurePythonTokenizer(vocabulary), random.Random(seed)
    documents: list[list[list[str]]] = [[]]
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                line = line.strip()
                if not line:
                    documents.append([])
                tokens = tokenizer.tokenize(line)
                if tokens:
                    documents[-1].append(tokens)
    documents = [document for document in documents if document]
    rng.shuffle(documents)
    words = list(vocabulary)
    instances = []
    for number in range(len(documents)):
        instances.extend(_document_instances(documents, number, max_seq_length, max_predictions, words, rng))
    rng.shuffle(instances)
    features = [_features(instance, vocabulary, max_seq_length, max_predictions) for instance in instances]
    return len(features)


def _document_instances(documents, number, max_seq_length, max_predictions, words, rng):
    max_tokens = max_seq_length - 3
    target = max_tokens
    if rng.random() < 0.1:
        target = rng.randint(2, max_tokens)
    document, instances, chunk, length, i = documents[number], [], [], 0, 0
    while i < len(document):
        chunk.append(document[i])
        length += len(document[i])
        if i == len(document) - 1 or length >= target:
            split = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
            side_a = [token for segment in chunk[:split] for token in segment]
            is_random = len(chunk) == 1 or rng.random() < 0.5
            if is_random:
                side_b = _random_side(documents, number, target - len(side_a), rng)
                i -= len(chunk) - split
            else:
                side_b = [token for segment in chunk[split:] for token in segment]
            while len(side_a) + len(side_b) > max_tokens:
                longer = side_a if len(side_a) > len(side_b) else side_b
                if rng.random() < 0.5:
                    del longer[0]
                else:
                    longer.pop()
            tokens = ["[CLS]", *side_a, "[SEP]", *side_b, "[SEP]"]
            types = [0] * (len(side_a) + 2) + [1] * (len(side_b) + 1)
            instances.append((*_mask(tokens, max_predictions, words, rng), types, is_random))
            chunk, length = [], 0
        i += 1
    return instances


def _random_side(documents, number, target, rng):
    other = number
    for _ in range(10):
        other = rng.randint(0, len(documents) - 1)
        if other != number:
            break
    side = []
    for segment in documents[other][rng.randint(0, len(documents[other]) - 1) :]:
        side.extend(segment)
        if len(side) >= target:
            break
    return side


def _mask(tokens, max_predictions, words, rng):
    candidates = [position for position, token in enumerate(tokens) if token not in ("[CLS]", "[SEP]")]
    rng.shuffle(candidates)
    count = min(max_predictions, max(1, round(len(tokens) * 0.15)))
    masked, positions = list(tokens), sorted(candidates[:count])
    for position in positions:
        if rng.random() < 0.8:
            masked[position] = "[MASK]"
        elif rng.random() >= 0.5:
            masked[position] = words[rng.randint(0, len(words) - 1)]
    return masked, positions, [tokens[position] for position in positions]


def _features(instance, vocabulary, max_seq_length, max_predictions):
    tokens, positions, labels, types, is_random = instance
    ids = [vocabulary[token] for token in tokens]
    padding, unused = max_seq_length - len(ids), max_predictions - len(positions)
    return {
        "input_ids": ids + [0] * padding,
        "input_mask": [1] * len(ids) + [0] * padding,
        "segment_ids": types + [0] * padding,
        "masked_lm_positions": positions + [0] * unused,
        "masked_lm_ids": [vocabulary[token] for token in labels] + [0] * unused,
        "masked_lm_weights": [1.0] * len(positions) + [0.0] * unused,
        "next_sentence_labels": [int(is_random)],
    }
