"""Compare the tokenizer with HuggingFace `tokenizers`, and learned vocabularies with the released one.

    python benchmarks/tokenizer.py --data ../shared/data            # speed; needs the `parity` extra
    python benchmarks/tokenizer.py --data ../shared/data --learn    # quality of learned vocabularies

The data folder contains `pretrain_en/` (plain text, or .tar.xz of it) and `vocab/bert-base-uncased-vocab.txt`.

Speed:
* Both sides get the same lines in the same batches, the same vocabulary, no special tokens and one core (the process is
  pinned to it if the system allows that). They take turns in each repeat.
* "cold" is the first pass of a new tokenizer, with an empty cache; "warm" is its second pass.
* `lists` returns a list of ids per line, like HuggingFace; `arrays` is what the data set builder calls.
* HuggingFace's `fast` computes no offsets.

Quality:
* Vocabularies are learned from nine of ten novels and all but the last of the other files. The held-out text is split
  greedily.
* `tokens/word` is better if lower. `rare` is the fraction of tokens that greedy matching uses fewer than ten times on
  the training text.
* "dropped" means that a quarter more tokens were proposed and the least used ones were dropped.

Text goes to standard error, one JSON object to standard output.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from bert_jax.data.tokenization import WordPieceTokenizer
from bert_jax.data.vocabulary import SPECIAL_PIECES, Vocabulary, load_vocabulary
from bert_jax.data.vocabulary_learning import (
    choose_characters,
    count_uses,
    count_words,
    keep_most_used,
    known_words,
    propose_pieces,
    single_character_pieces,
)
from bert_jax.data.wordpiece import GreedyMatcher

_BATCH = 1000  # lines


def read_files(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of all text files, including those in .tar.xz files, sorted by name."""
    for path in sorted(folder.iterdir()):
        if path.suffixes[-2:] == [".tar", ".xz"]:
            with tarfile.open(path) as archive:
                for member in sorted(archive.getmembers(), key=lambda m: m.name):
                    handle = archive.extractfile(member) if member.name.endswith(".txt") else None
                    if handle is not None:
                        yield member.name, handle.read().decode("utf-8-sig")
        elif path.suffix in ("", ".txt"):
            yield path.name, path.read_text(encoding="utf-8-sig")


def huggingface(vocabulary: Vocabulary, *, method: str) -> Callable[[list[str]], list[list[int]]]:
    """Return HuggingFace's batch encoding, with the original's limit of 200 characters per word."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            {piece: i for i, piece in enumerate(vocabulary.pieces)}, unk_token="[UNK]", max_input_chars_per_word=200
        )
    )
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=vocabulary.do_lower_case)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    encode = getattr(tokenizer, method)
    return lambda lines: [encoding.ids for encoding in encode(lines, add_special_tokens=False)]


def measure_speed(folder: pathlib.Path, *, megabytes: float, repeats: int) -> dict[str, float]:
    """Return the speed in MB/s of each contestant, the median of `repeats`."""
    vocabulary = load_vocabulary(folder / "vocab" / "bert-base-uncased-vocab.txt")
    lines: list[str] = []
    size = 0
    # Short files first, then as many novels as fit.
    for _, text in sorted(read_files(folder / "pretrain_en"), key=lambda item: item[0].startswith("corpus")):
        if size < megabytes * 1e6:
            lines += [line for line in text.splitlines() if line.strip()]
            size += len(text.encode())
    size = sum(len(line.encode()) for line in lines)
    batches = [lines[i : i + _BATCH] for i in range(0, len(lines), _BATCH)]
    print(f"{len(lines)} lines, {size / 1e6:.1f} MB, vocabulary of {vocabulary.size} tokens", file=sys.stderr)

    def timed(encode: Callable[[list[str]], object]) -> float:
        start = time.perf_counter()
        for batch in batches:
            encode(batch)
        return size / 1e6 / (time.perf_counter() - start)

    speeds: dict[str, list[float]] = {}
    for _ in range(repeats):
        for method in ("encode_batch", "encode_batch_fast"):
            speeds.setdefault(f"huggingface {method}", []).append(timed(huggingface(vocabulary, method=method)))
        for name, method in (("lists", "encode_batch"), ("arrays", "encode_batch_arrays")):
            encode = getattr(WordPieceTokenizer(vocabulary), method)
            for state in ("cold", "warm"):
                speeds.setdefault(f"bert_jax {name} {state}", []).append(timed(encode))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    for name, speed in medians.items():
        ratios = [speed / medians[f"huggingface {method}"] for method in ("encode_batch", "encode_batch_fast")]
        print(f"{name:32} {speed:7.2f} MB/s  {ratios[0]:5.2f} x encode_batch  {ratios[1]:5.2f} x fast", file=sys.stderr)
    return medians


def tokens_per_word(pieces: tuple[str, ...] | list[str], *, words: Counter[str]) -> tuple[float, float]:
    """Return the tokens per word and the fraction of unknown words."""
    matcher = GreedyMatcher(pieces)
    tokens = unknown = 0
    for word, count in words.items():
        ids = matcher.match(word)
        tokens += count * (len(ids) if ids else 1)
        unknown += count * (ids is None)
    return tokens / words.total(), unknown / words.total()


def measure_learning(folder: pathlib.Path) -> list[dict[str, object]]:
    """Return a record for each learning method and vocabulary size."""
    files = list(read_files(folder / "pretrain_en"))
    novels = [text for name, text in files if name.startswith("corpus")]
    others = [text for name, text in files if not name.startswith("corpus")]
    train = [text for i, text in enumerate(novels) if i % 10] + others[:-1]
    start = time.perf_counter()
    counts, novel, other = (
        count_words(texts, do_lower_case=True, max_distinct_words=1_000_000)
        for texts in (train, novels[::10], others[-1:])
    )
    print(f"counted {counts.total()} words in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    rows: list[dict[str, object]] = []

    def report(name: str, pieces: tuple[str, ...] | list[str], *, seconds: float):
        rare = sum(count < 10 for count in count_uses(list(pieces), words=counts).values()) / len(pieces)
        row: dict[str, object] = {"pieces": name, "vocab_size": len(pieces), "seconds": seconds, "rare": rare}
        for held_out, words in (("novels", novel), ("other", other)):
            row[f"{held_out} tokens/word"], row[f"{held_out} unknown"] = tokens_per_word(pieces, words=words)
        rows.append(row)
        print(
            "  ".join(f"{k}={v:.5g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), file=sys.stderr
        )

    released = load_vocabulary(folder / "vocab" / "bert-base-uncased-vocab.txt").pieces
    report("bert-base-uncased", released, seconds=0.0)
    for size in (4096, 30522):
        slots = size - len(SPECIAL_PIECES)
        characters = choose_characters(counts, num_slots=slots, coverage=0.99999)
        singles = single_character_pieces(characters)
        words = known_words(counts, characters=characters)
        num_tokens = slots - len(singles)
        for model_type in ("bpe", "unigram"):
            for surplus in (1.0, 1.25):
                start = time.perf_counter()
                proposed = propose_pieces(
                    words, number=round(num_tokens * surplus), singles=singles, model_type=model_type
                )
                if surplus > 1:
                    proposed = keep_most_used(proposed, number=num_tokens, singles=singles, words=words)
                name = model_type + (", least used dropped" if surplus > 1 else "")
                report(name, [*SPECIAL_PIECES, *singles, *proposed[:num_tokens]], seconds=time.perf_counter() - start)
    return rows


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder with pretrain_en/ and vocab/")
    parser.add_argument("--learn", action="store_true", help="measure learned vocabularies instead of speed")
    parser.add_argument("--megabytes", type=float, default=40, help="amount of text for measuring speed")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.learn:
        print(json.dumps({"learning": measure_learning(arguments.data)}))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(json.dumps(measure_speed(arguments.data, megabytes=arguments.megabytes, repeats=arguments.repeats)))


if __name__ == "__main__":
    main()
