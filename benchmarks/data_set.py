"""Compare the data set builder with the original's algorithm, and measure the builder's peak memory.

    python benchmarks/data_set.py --data=../shared/data

* Both sides read the same files, one sentence per line, with the released uncased vocabulary, at max_seq_length 128.
* The original's algorithm is slow, so it gets only `--original_megabytes` of text. The builder gets `--megabytes`, with
  one process and with two. Its start-up is included.
* The ratio per core is that of text per CPU second, which does not depend on other programs on the machine.
* Peak memory is that of one process, for a corpus and for one four times as large.

Prints medians over rounds and one JSON object.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.original_data import make_features
from bert_jax.data.documents import split_paragraph

DATA = flags.DEFINE_string("data", "../shared/data", "The folder of genuine data.")
MEGABYTES = flags.DEFINE_float("megabytes", 75, "Text for the builder.")
ORIGINAL_MEGABYTES = flags.DEFINE_float("original_megabytes", 10, "Part of this text for the original's algorithm.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of each side.")
MEMORY = flags.DEFINE_bool("memory", True, "Also measure peak memory.")

LENGTH = 128


def write_text(folder: Path, novels: Path, *, max_bytes: float) -> int:
    """Write novels up to a total size, one file each, one sentence per line. Return the number of bytes."""
    folder.mkdir()
    written = 0
    with tarfile.open(novels) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".txt") else None
            if file is None or written >= max_bytes:
                continue
            text = file.read().decode("utf-8-sig", "replace").replace("\r\n", "\n")
            paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
            sentences = [item for paragraph in paragraphs for item in split_paragraph(paragraph, language="en")]
            content = ("\n".join(sentences) + "\n").encode()[: int(max_bytes - written)]
            (folder / Path(member.name).name).write_bytes(content)
            written += len(content)
    return written


def timed_original(text: Path, vocabulary: Path) -> dict[str, float]:
    """Run the original's algorithm in this process. Return its seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    count = make_features(sorted(text.iterdir()), vocabulary_file=vocabulary, max_seq_length=LENGTH, max_predictions=20)
    return {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu, "rows": count}


def timed_builder(texts: list[Path], vocabulary: Path, out: Path, *, num_workers: int) -> dict[str, float]:
    """Run the `prepare` command. Return the seconds of the command and its workers, and its peak memory in bytes."""
    arguments = [f"--input={','.join(map(str, texts))}", f"--vocab={vocabulary}", f"--out={out}"]
    arguments += [f"--max_seq_length={LENGTH}", f"--num_workers={num_workers}", "--format=sentences"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "bert_jax.prepare", *arguments],
        stdout=subprocess.DEVNULL,
        cwd=Path(__file__).resolve().parents[1],
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError("prepare failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - start, "cpu": cpu, "peak": usage.ru_maxrss * 1024}


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    data = Path(DATA.value).resolve()
    vocabulary = data / "vocab" / "bert-base-uncased-vocab.txt"
    novels = data / "pretrain_en" / "100_english_novels.tar.xz"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        size = write_text(work / "text", novels, max_bytes=MEGABYTES.value * 1e6)
        small = write_text(work / "small", novels, max_bytes=ORIGINAL_MEGABYTES.value * 1e6)
        rates: dict[str, list[tuple[float, float]]] = {"original": [], "1 process": [], "2 processes": []}
        for number in range(ROUNDS.value):
            times = timed_original(work / "small", vocabulary)
            rates["original"].append((small / times["wall"] / 1e6, small / times["cpu"] / 1e6))
            for num_workers, name in ((1, "1 process"), (2, "2 processes")):
                out = work / f"out{number}-{num_workers}"
                times = timed_builder([work / "text"], vocabulary, out, num_workers=num_workers)
                rates[name].append((size / times["wall"] / 1e6, size / times["cpu"] / 1e6))
        result: dict[str, object] = {"megabytes": size / 1e6, "original_megabytes": small / 1e6, "rounds": ROUNDS.value}
        medians = {
            name: [statistics.median(column) for column in zip(*pairs, strict=True)] for name, pairs in rates.items()
        }
        for name, (wall, cpu) in medians.items():
            print(f"{name:12} {wall:8.3f} MB/s of wall time {cpu:8.3f} MB per CPU second")
            result[name] = {"mb_per_second": wall, "mb_per_cpu_second": cpu}
        result["ratio_per_core"] = medians["1 process"][1] / medians["original"][1]
        print(f"per core, the builder is {result['ratio_per_core']:.1f} times as fast as the original's algorithm")
        if MEMORY.value:
            copies = []
            for number in range(4):
                copies.append(work / f"text{number}")
                copies[-1].symlink_to(work / "text")
            peaks = [
                timed_builder(texts, vocabulary, work / f"memory{len(texts)}", num_workers=1)["peak"]
                for texts in (copies[:1], copies)
            ]
            result["peak_bytes"], result["peak_bytes_of_4_times_the_text"] = peaks
            print(f"peak memory {peaks[0] / 1e6:.0f} MB, for four times the text {peaks[1] / 1e6:.0f} MB")
        print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
