"""Print what this host holds of the first batches of a fine-tuning run: a digest per row of the global batch.

    python tests/show_finetune_batches.py CONFIG_JSON MODEL

The hosts find each other as those of a run do. Run by `test_finetune_hosts.py`.
"""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

from bert_jax.config.finetuning import from_config_dict
from bert_jax.convert.loading import load_pretrained
from bert_jax.finetuning.fine_tuner import FineTuner
from bert_jax.finetuning.finetune import open_config_task
from bert_jax.finetuning.settings import grid
from bert_jax.finetuning.task_data import load_task_data
from bert_jax.parallel import distributed

BATCHES = 3


def main(config_file: str, model: str) -> None:
    """Print a JSON object: of each batch, the digests of the rows that this host's devices hold."""
    distributed.start(seconds=120)
    config = from_config_dict(json.loads(Path(config_file).read_text()))
    task, source = open_config_task(config), load_pretrained(model, report=lambda line: None)
    data = load_task_data(task, tokenizer=source.require_tokenizer(), predict_test=False)
    sizes = [config.train.batch_size]
    learner = FineTuner(config, task=task, pretrained=source, data=data, batch_sizes=sizes, random_parts=())
    run = grid(config, sweep=False, seeds=1)[0]
    held: dict[str, str] = {}
    for number, rows in enumerate(learner.batches(run, start=0, end=BATCHES)):
        for name in ("input_ids", "segment_lengths", "weights", "targets"):
            for shard in getattr(rows, name).addressable_shards:
                first = shard.index[0].start or 0
                for row, values in enumerate(np.asarray(shard.data), start=first):
                    held[f"{number} {name} {row}"] = hashlib.sha256(values.tobytes()).hexdigest()[:16]
    print("held", json.dumps(held), "of", jax.process_count())


if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    main(*sys.argv[1:])
