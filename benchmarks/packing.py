"""Build rows with and without packing from real text; say how full they are and what packing costs.

    python benchmarks/packing.py --data=../shared/data

Builds from Wikipedia and 100 novels with the released uncased vocabulary, in one process: one length a build, each
plain and packed; with `--max_instance_length` once more, packed from shorter instances. Prints for every build the
share of padding, rows, instances a row (mean and bound), the predictions a row may need beside those an unpacked row
needs, instances and real tokens for every 1,000 token positions that a step computes, and CPU seconds; then a JSON
object. The instances are the same, plain and packed: only the rows differ. The original recipe draws one target length
a document, so with few documents much depends on the draw: give several `--seeds`.
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
LENGTHS = flags.DEFINE_list("max_seq_length", ["128", "512", "1024"], "Lengths of the rows.")
SHORT = flags.DEFINE_integer("max_instance_length", 128, "Also pack instances of this length; 0: do not.")
RECIPE = flags.DEFINE_enum("recipe", "modern", CHOICES["recipe"], "How pairs are made.")
SEEDS = flags.DEFINE_list("seeds", [str(DataConfig().seed)], "Data seeds; of several, also the mean and the range.")


def build(data: Path, config: DataConfig, *, length: int) -> dict[str, Any]:
    """Build one data set in a folder of its own and return what it is like."""
    given = dataclasses.replace(
        config,
        input=f"{data / 'pretrain_en' / 'wiki_0?'},{data / 'pretrain_en' / '100_english_novels.tar.xz'}",
        vocab=str(data / "vocab" / "bert-base-uncased-vocab.txt"),
        num_workers=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF)
        info = build_dataset(
            given,
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
    """Return the builds that differ by their seed alone, together."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for found in results:
        groups.setdefault((found["length"], found["pack"], found["max_instance_length"]), []).append(found)
    return groups


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    data, results = Path(DATA.value).resolve(), []
    print("length   packed from       rows  padding  a row  bound  slots  attended  instances  tokens  CPU s")
    for length, seed in itertools.product(map(int, LENGTHS.value), map(int, SEEDS.value)):
        configs = [DataConfig(), DataConfig(pack=True)]
        if 0 < SHORT.value < length:
            configs.append(DataConfig(pack=True, max_instance_length=SHORT.value))
        for config in configs:
            found = build(data, dataclasses.replace(config, seed=seed), length=length)
            results.append(found)
            packed = f"up to {found['max_instance_length']}" if config.pack else "-"
            print(
                f"{length:6}  {packed:>12}  {found['rows']:9,}  {found['padding_share']:7.2%}  "
                f"{found['instances_per_row']:5.2f}  {found['bound']:5}  {found['predictions']:5}  "
                f"{found['attended_share']:8.1%}  {found['instances_a_1000_positions']:9.3f}  "
                f"{found['tokens_a_1000_positions']:6.1f}  {found['cpu_seconds']:5.1f}",
                flush=True,
            )
    for key, builds in _grouped(results).items():
        for field in ("padding_share", "instances_per_row") if len(builds) > 1 else ():
            values = [found[field] for found in builds]
            spread = f"mean {statistics.mean(values):.4f}, {min(values):.4f} to {max(values):.4f}"
            print(f"length {key[0]}, packed {key[1]}, up to {key[2]}: {field} {spread}")
    print(json.dumps({"recipe": RECIPE.value, "builds": results}))


if __name__ == "__main__":
    app.run(main)
