"""Measure the tokenizer beside HuggingFace `tokenizers`, and learned vocabularies beside the released one.

    python benchmarks/tokenizer.py --data ../shared/data            # speed; needs the `parity` extra
    python benchmarks/tokenizer.py --data ../shared/data --learn    # quality of learned vocabularies

DIR holds `pretrain_en/` (plain text or .tar.xz of it) and `vocab/bert-base-uncased-vocab.txt`.

Speed: both sides get the same lines in the same batches, the same vocabulary, no special tokens and one core (the
process is pinned to it where the system can), and in each repeat take turns. "cold" is a new tokenizer's first pass,
its memo empty; "warm" is its second pass. `lists` returns a list of ids for each line, as HuggingFace does; `arrays` is
what the data set builder calls. HuggingFace's `fast` leaves out offsets.

Quality: vocabularies are learned from nine novels in ten and all but the last other file; what is held out is cut
greedily. `tokens/word` is better when lower; `rare` is the share of the pieces that greedy matching uses fewer than ten
times on the text learned from. "dropped" means that a quarter more pieces were proposed and the least used dropped.

Readable text goes to standard error, one JSON object to standard output.
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
    """Yield (name, text) of every text file, those in .tar.xz files included, by name."""
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
    """Return HuggingFace's batch encoding with the original's limit of 200 characters a word."""
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
    """Return MB/s by name, the median of `repeats`."""
    vocabulary = load_vocabulary(folder / "vocab" / "bert-base-uncased-vocab.txt")
    lines: list[str] = []
    size = 0
    # The short files first, then as many novels as fit.
    for _, text in sorted(read_files(folder / "pretrain_en"), key=lambda item: item[0].startswith("corpus")):
        if size < megabytes * 1e6:
            lines += [line for line in text.splitlines() if line.strip()]
            size += len(text.encode())
    size = sum(len(line.encode()) for line in lines)
    batches = [lines[i : i + _BATCH] for i in range(0, len(lines), _BATCH)]
    print(f"{len(lines)} lines, {size / 1e6:.1f} MB, {vocabulary.size} pieces", file=sys.stderr)

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
    """Return tokens a word and the share of unknown words."""
    matcher = GreedyMatcher(pieces)
    tokens = unknown = 0
    for word, count in words.items():
        ids = matcher.match(word)
        tokens += count * (len(ids) if ids else 1)
        unknown += count * (ids is None)
    return tokens / words.total(), unknown / words.total()


def measure_learning(folder: pathlib.Path) -> list[dict[str, object]]:
    """Return a row for each way of learning and size."""
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
        wanted = slots - len(singles)
        for model_type in ("bpe", "unigram"):
            for surplus in (1.0, 1.25):
                start = time.perf_counter()
                proposed = propose_pieces(words, number=round(wanted * surplus), singles=singles, model_type=model_type)
                kept = (
                    keep_most_used(proposed, number=wanted, singles=singles, words=words) if surplus > 1 else proposed
                )
                name = model_type + (", least used dropped" if surplus > 1 else "")
                report(name, [*SPECIAL_PIECES, *singles, *kept[:wanted]], seconds=time.perf_counter() - start)
    return rows


def main():
    """Parse the flags, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder with pretrain_en/ and vocab/")
    parser.add_argument("--learn", action="store_true", help="measure learned vocabularies instead of speed")
    parser.add_argument("--megabytes", type=float, default=40, help="text to measure speed on")
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
