"""Time the loader at max_seq_length 128, with shards of 10,000 and of 400,000 records.

    python benchmarks/loader.py

Writes both data sets with random records, then reads shuffled batches alternately from both with `PretrainingBatches`,
in one thread, as a training loop does. Prints medians of sequences per CPU second (one core) and one JSON object.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bert_jax.data.dataset_info import DatasetInfo, ShardFile, write_dataset_info
from bert_jax.data.loader import PretrainingBatches
from bert_jax.data.records import record_prefix, row_spec
from bert_jax.data.shards import _write_records, dataset_directory

SHARDS = flags.DEFINE_list("rows_a_shard", ["10000", "400000"], "Records per shard.")
NUM_SHARDS = flags.DEFINE_integer("num_shards", 2, "Shards per data set.")
BATCH = flags.DEFINE_integer("batch_size", 256, "Sequences per batch.")
BATCHES = flags.DEFINE_integer("num_batches", 100, "Batches per round.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds per data set.")

LENGTH, VOCAB = 128, 30522


def write_random_data_set(out: Path, *, rows_a_shard: int, num_shards: int) -> None:
    """Write a data set of full sequences of random ids."""
    spec = row_spec(LENGTH, vocab_size=VOCAB)
    directory = dataset_directory(out, max_seq_length=LENGTH)
    shards = []
    for number in range(num_shards):
        rows = np.random.default_rng(number).integers(0, VOCAB, (rows_a_shard, spec.num_elements), dtype=np.uint16)
        rows[:, :3] = 70, LENGTH - 70, 1
        file = directory / f"bert_pretraining-train.array_record-{number:05d}-of-{num_shards:05d}"
        _write_records(file, rows, record_prefix(spec))
        shards.append(ShardFile(file.name, rows_a_shard, file.stat().st_size))
    info = DatasetInfo(
        directory=out,
        vocab_directory=out / "vocab",
        vocab_size=VOCAB,
        vocabulary_fingerprint="",
        do_lower_case=True,
        objective="mlm+nsp",
        recipe="modern",
        max_seq_length=LENGTH,
        instances_per_row=1,
        max_token_id=VOCAB - 1,
        data_fingerprint="",
        row_spec=spec,
        shards={"train": tuple(shards)},
        statistics={},
    )
    write_dataset_info(dataclasses.replace(info))


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    with tempfile.TemporaryDirectory() as folder:
        batches, cpu_rates, wall_rates = {}, {}, {}
        for rows in map(int, SHARDS.value):
            out = Path(folder) / str(rows)
            write_random_data_set(out, rows_a_shard=rows, num_shards=NUM_SHARDS.value)
            batches[rows] = PretrainingBatches(out, max_seq_length=LENGTH, batch_size=BATCH.value, seed=0)
            batches[rows][0]
            cpu_rates[rows], wall_rates[rows] = [], []
        for number in range(ROUNDS.value):
            for rows, loader in batches.items():
                first = 1 + number * BATCHES.value
                start, cpu = time.perf_counter(), time.process_time()
                for batch in range(first, first + BATCHES.value):
                    loader[batch]
                count = BATCHES.value * BATCH.value
                cpu_rates[rows].append(count / (time.process_time() - cpu))
                wall_rates[rows].append(count / (time.perf_counter() - start))
        result = {}
        for rows in batches:
            result[str(rows)] = {
                "sequences_per_cpu_second": statistics.median(cpu_rates[rows]),
                "sequences_per_second": statistics.median(wall_rates[rows]),
            }
            print(
                f"shards of {rows:7,} records: {statistics.median(cpu_rates[rows]):9,.0f} sequences per CPU second, "
                f"{statistics.median(wall_rates[rows]):9,.0f} per second of wall time"
            )
        print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
