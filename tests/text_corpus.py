"""Write small corpora for tests: documents of made-up sentences, each document marked by a word of its own."""

import random
from pathlib import Path

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "for",
    "it",
    "was",
    "on",
    "are",
    "as",
    "be",
    "at",
    "or",
    "not",
]
NAMES = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("alo", "eru", "imi", "onda", "ulti")]


def marker(number: int) -> str:
    """Return the word that only document `number` has."""
    return f"{NAMES[number % len(NAMES)]}{NAMES[number // len(NAMES)]}"


def make_documents(count: int, *, seed: int = 0, max_sentences: int = 40) -> list[list[str]]:
    """Return documents as lists of sentences; every sentence has its document's marker."""
    rng = random.Random(seed)
    return [
        [
            " ".join([*rng.choices(WORDS, k=rng.randint(2, 20)), marker(number), rng.choice(NAMES)]).capitalize() + "."
            for _ in range(rng.randint(3, max_sentences))
        ]
        for number in range(count)
    ]


def write_corpus(folder: Path, documents: list[list[str]], *, num_files: int = 3) -> Path:
    """Write documents in the format of a sentence a line, a blank line between documents, to `num_files` files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        blocks = ["\n".join(sentences) for sentences in documents[number::num_files]]
        (folder / f"part{number}.txt").write_text("\n\n".join(blocks) + "\n")
    return folder


def write_vocabulary(folder: Path, *, num_markers: int = 400) -> Path:
    """Write a vocabulary that has a piece for every word of `make_documents`."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS, *NAMES]
    pieces += [marker(number) for number in range(num_markers)]
    file = folder / "vocab.txt"
    file.write_text("".join(f"{piece}\n" for piece in pieces))
    return file
