"""Time the readers of corpora, and their memory: one text as plain text, CSV, JSON lines and array, parquet, arrow.

    python benchmarks/reading.py --data=../shared/data --megabytes=300

Writes the paragraphs of the novels, repeated to --megabytes of text, in each format (parquet and arrow in row groups of
10,000 paragraphs), then reads each file --rounds times to documents of paragraphs, every time in a new process, as a
worker of `prepare` does. Prints medians of MB of text per CPU second, their ratio to plain text, the peak memory of the
process, and one JSON object. Needs the `arrow` extra.
"""

import csv
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bert_jax.data.documents import read_documents

DATA = flags.DEFINE_string("data", "../shared/data", "Folder with pretrain_en/100_english_novels.tar.xz.")
MEGABYTES = flags.DEFINE_integer("megabytes", 300, "Size of the text.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds per format.", lower_bound=1)
READ = flags.DEFINE_string("read", "", "Only read this file, and print what it took: what the rounds call.")

ROW_GROUP = 10_000


def read_paragraphs(archive: Path) -> list[str]:
    """Return the paragraphs of the novels."""
    paragraphs = []
    with tarfile.open(archive) as novels:
        for member in novels:
            file = novels.extractfile(member)
            text = file.read().decode("utf-8-sig", errors="replace").replace("\r\n", "\n") if file else ""
            paragraphs += [" ".join(part.split()) for part in text.split("\n\n") if 40 < len(part) < 10_000]
    return paragraphs


def write_corpora(folder: Path, texts: list[str]) -> None:
    """Write `texts` in every format; a document per text."""
    with (
        (folder / "text.txt").open("w", encoding="utf-8") as plain,
        (folder / "table.csv").open("w", encoding="utf-8", newline="") as table,
        (folder / "lines.jsonl").open("w", encoding="utf-8") as lines,
        (folder / "array.json").open("w", encoding="utf-8") as array,
    ):
        writer = csv.writer(table)
        writer.writerow(["id", "text"])
        for number, text in enumerate(texts):
            plain.write(text + "\n\n")
            writer.writerow([number, text])
            lines.write(json.dumps({"id": number, "text": text}, ensure_ascii=False) + "\n")
            array.write(("[" if number == 0 else ",\n") + json.dumps({"id": number, "text": text}, ensure_ascii=False))
        array.write("]\n")
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with (
        pq.ParquetWriter(folder / "table.parquet", schema) as parquet,
        (folder / "table.arrow").open("wb") as file,
        pa.ipc.new_stream(file, schema) as arrow,
    ):
        for batch in _batches(texts, schema):
            parquet.write_batch(batch)
            arrow.write_batch(batch)


def _batches(texts: list[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(texts), ROW_GROUP):
        part = texts[start : start + ROW_GROUP]
        yield pa.record_batch([pa.array(range(start, start + len(part))), pa.array(part)], schema=schema)


def read(path: str) -> dict[str, float]:
    """Read a file in this process."""
    start, characters, documents = time.process_time(), 0, 0
    for document in read_documents(path, split_sentences=False):
        documents += 1
        characters += sum(map(len, document.sentences))
    seconds = time.process_time() - start
    # ru_maxrss would be the parent's before exec.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    return {"seconds": seconds, "peak_bytes": peak, "documents": documents, "characters": characters}


def main(argv: list[str]) -> None:
    """Write the files, read them in turn, print the medians."""
    del argv
    if READ.value:
        print(json.dumps(read(READ.value)))
        return
    paragraphs = read_paragraphs(Path(DATA.value) / "pretrain_en/100_english_novels.tar.xz")
    sizes = [len(text.encode()) for text in paragraphs]
    copies = max(1, round(MEGABYTES.value * 1e6 / sum(sizes)))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        write_corpora(Path(folder), paragraphs * copies)
        del paragraphs
        files = sorted(Path(folder).iterdir(), key=lambda path: path.suffix != ".txt")
        rounds = {path.name: [] for path in files}
        for _ in range(ROUNDS.value):
            for path in files:
                command = [sys.executable, __file__, f"--read={path}"]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                rounds[path.name].append(json.loads(output))
        for path in files:
            items = rounds[path.name]
            assert {item["characters"] for item in items} == {rounds["text.txt"][0]["characters"]}
            results[path.name] = {
                "file_mb": path.stat().st_size / 1e6,
                "mb_per_cpu_second": sum(sizes) * copies / 1e6 / statistics.median(item["seconds"] for item in items),
                "peak_mb": max(item["peak_bytes"] for item in items) / 1e6,
                "documents": items[0]["documents"],
            }
    plain = results["text.txt"]["mb_per_cpu_second"]
    for name, item in results.items():
        rate = item["mb_per_cpu_second"]
        print(f"{name:<14} {rate:7.1f} MB/s, {rate / plain:.2f} of plain text, peak {item['peak_mb']:.0f} MB")
    print(json.dumps(results))


if __name__ == "__main__":
    app.run(main)
