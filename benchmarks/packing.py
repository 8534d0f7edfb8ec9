"""Build data sets with and without sequence packing from real text, and report padding and the cost of packing.

    python benchmarks/packing.py --data=../shared/data

Builds from Wikipedia and 100 novels with the released uncased vocabulary, in one process. For each length it builds one
data set without packing, one with packing, and with `--max_instance_length` one packed from shorter instances. The
instances with and without packing are the same. Prints for each build, and as a JSON object:

* sequences, and the fraction of padding;
* instances per sequence (mean and maximum), and prediction slots per sequence;
* the fraction of position pairs that are in the same instance;
* instances and real tokens per 1,000 token positions that a step computes;
* CPU seconds.

The original recipe samples one target length per document, so with few documents the results depend on the seed: give
several `--seeds`.
"""

import dataclasses
import itertools
import json
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bert_jax.config import CHOICES, DataConfig, MaskingConfig
from bert_jax.data.builder import build_dataset
from bert_jax.pretrain.masking import default_max_predictions, row_predictions

DATA = flags.DEFINE_string("data", "../shared/data", "The folder of genuine data.")
LENGTHS = flags.DEFINE_list("max_seq_length", ["128", "512", "1024"], "Sequence lengths.")
SHORT = flags.DEFINE_integer("max_instance_length", 128, "Also pack instances of at most this length; 0: do not.")
RECIPE = flags.DEFINE_enum("recipe", "modern", CHOICES["recipe"], "How pairs are made.")
SEEDS = flags.DEFINE_list("seeds", [str(DataConfig().seed)], "Data seeds; for several, also prints mean and range.")


def build(data: Path, config: DataConfig, *, length: int) -> dict[str, Any]:
    """Build one data set in a temporary folder and return its statistics."""
    data_config = dataclasses.replace(
        config,
        input=f"{data / 'pretrain_en' / 'wiki_0?'},{data / 'pretrain_en' / '100_english_novels.tar.xz'}",
        vocab=str(data / "vocab" / "bert-base-uncased-vocab.txt"),
        num_workers=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF)
        info = build_dataset(
            data_config,
            out=Path(folder) / "out",
            max_seq_lengths=[length],
            vocab_size=0,
            recipe=RECIPE.value,
            report=lambda text: None,
        )
        after = resource.getrusage(resource.RUSAGE_SELF)
    rate = MaskingConfig().rate
    limit = default_max_predictions(length, rate=rate)
    rows, instances = sum(info.statistics["rows"].values()), sum(info.statistics["instances"].values())
    return {
        "length": length,
        "seed": config.seed,
        "pack": config.pack,
        "max_instance_length": config.max_instance_length or length,
        "rows": rows,
        "padding_share": info.statistics["padding_share"],
        "instances_per_row": instances / rows,
        "bound": info.instances_per_row,
        "attended_share": info.statistics["attended_share"],
        "predictions": row_predictions(length, instances=info.instances_per_row, rate=rate, limit=limit),
        "instances_a_1000_positions": 1000 * instances / rows / length,
        "tokens_a_1000_positions": 1000 * (1 - info.statistics["padding_share"]),
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def _grouped(results: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return groups of builds that differ only by their seed."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["length"], result["pack"], result["max_instance_length"]), []).append(result)
    return groups


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    data, results = Path(DATA.value).resolve(), []
    print("length   packed from  sequences  padding  inst/seq  max  slots  attended  instances  tokens  CPU s")
    for length, seed in itertools.product(map(int, LENGTHS.value), map(int, SEEDS.value)):
        configs = [DataConfig(), DataConfig(pack=True)]
        if 0 < SHORT.value < length:
            configs.append(DataConfig(pack=True, max_instance_length=SHORT.value))
        for config in configs:
            result = build(data, dataclasses.replace(config, seed=seed), length=length)
            results.append(result)
            packed = f"up to {result['max_instance_length']}" if config.pack else "-"
            print(
                f"{length:6}  {packed:>12}  {result['rows']:9,}  {result['padding_share']:7.2%}  "
                f"{result['instances_per_row']:8.2f}  {result['bound']:3}  {result['predictions']:5}  "
                f"{result['attended_share']:8.1%}  {result['instances_a_1000_positions']:9.3f}  "
                f"{result['tokens_a_1000_positions']:6.1f}  {result['cpu_seconds']:5.1f}",
                flush=True,
            )
    for key, builds in _grouped(results).items():
        for field in ("padding_share", "instances_per_row") if len(builds) > 1 else ():
            values = [result[field] for result in builds]
            spread = f"mean {statistics.mean(values):.4f}, {min(values):.4f} to {max(values):.4f}"
            print(f"length {key[0]}, packed {key[1]}, up to {key[2]}: {field} {spread}")
    print(json.dumps({"recipe": RECIPE.value, "builds": results}))


if __name__ == "__main__":
    app.run(main)
