"""Time a CPU training step beside HuggingFace PyTorch `BertForPreTraining`.

Same shapes, float32, same threads, one run:

    python benchmarks/cpu_step.py --model=mini --max_seq_length=128 --batch_size=32

Both sides do the whole step on the same ids: forward, backward, gradient clipping, AdamW; dropout 0.1 as the paper
trains. Ours also masks (HuggingFace gets masked ids and labels for free, and computes logits at every position, as its
class does). The sides take turns, so a machine whose speed drifts does not favour one; medians and their ratio are
printed. Needs the parity extra.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from bert_jax.config import Config, MeshConfig, PhaseConfig, TrainConfig, model_preset
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.masking import SpecialIds
from bert_jax.pretrain.program import Program
from bert_jax.types import Rows

MODEL = flags.DEFINE_string("model", "mini", "Model preset.")
LENGTH = flags.DEFINE_integer("max_seq_length", 128, "Tokens a row.")
BATCH = flags.DEFINE_integer("batch_size", 32, "Rows a step.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds of each side.")
STEPS = flags.DEFINE_integer("steps", 2, "Steps a round.")
THREADS = flags.DEFINE_integer("threads", 2, "Threads of PyTorch; ours takes the cores that the process may use.")
UNROLL = flags.DEFINE_bool("unroll", True, "Unroll the layers (faster than scanned ones on a CPU).")

VOCAB, PREDICTIONS = 30522, 20
SPECIAL = SpecialIds(cls_id=101, sep_id=102, mask_id=103, vocab_size=VOCAB)


def make_rows(batch: int, length: int) -> dict[str, np.ndarray]:
    """Return full rows of random words: [CLS] A [SEP] B [SEP]."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, VOCAB, (batch, length), dtype=np.int32)
    half = length // 2
    ids[:, 0], ids[:, half - 1], ids[:, -1] = SPECIAL.cls_id, SPECIAL.sep_id, SPECIAL.sep_id
    lengths = np.tile(np.array([[[half, length - half]]], np.int32), (batch, 1, 1))
    labels = rng.integers(0, 2, (batch, 1), dtype=np.int32)
    return {
        "input_ids": ids,
        "segment_lengths": lengths,
        "next_sentence_labels": labels,
        "word_starts": np.ones_like(ids, bool),
    }


def our_step(rows: dict[str, np.ndarray]) -> Callable[[], None]:
    """Return a function that takes one whole training step and waits for it."""
    phase = PhaseConfig(max_seq_length=LENGTH.value, max_predictions_per_seq=PREDICTIONS)
    config = Config(
        model=dataclasses.replace(model_preset(MODEL.value), dtype="float32", scan_layers=not UNROLL.value),
        train=TrainConfig(num_steps=100_000, batch_size=BATCH.value, phases=(phase,)),
    )
    program = Program(config, mesh=meshes.make_mesh(MeshConfig(), devices=jax.devices()[:1]))
    step = program.train_step(program.phases[0], special=SPECIAL)
    on_device = Rows(**meshes.to_global(rows, mesh=program.mesh))
    state = program.init_state()

    def take() -> None:
        nonlocal state
        state, output = step(state, on_device)
        jax.block_until_ready((state, output))

    return take


def their_step(rows: dict[str, np.ndarray]) -> Callable[[], None]:
    """Return the same for HuggingFace's class."""
    import torch
    import transformers

    torch.set_num_threads(THREADS.value)
    shape = model_preset(MODEL.value)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    config = transformers.BertConfig(**{name: getattr(shape, name) for name in names})
    model = transformers.BertForPreTraining(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    rng = np.random.default_rng(1)
    labels = np.full(rows["input_ids"].shape, -100, np.int64)
    for row in range(BATCH.value):
        chosen = rng.choice(np.arange(1, LENGTH.value - 1), PREDICTIONS, replace=False)
        labels[row, chosen] = rows["input_ids"][row, chosen]
    ids = np.where(labels >= 0, SPECIAL.mask_id, rows["input_ids"])
    types = (np.arange(LENGTH.value)[None] >= LENGTH.value // 2).repeat(BATCH.value, 0).astype(np.int64)
    inputs = {
        "input_ids": torch.tensor(ids, dtype=torch.long),
        "token_type_ids": torch.tensor(types),
        "attention_mask": torch.ones(ids.shape, dtype=torch.long),
        "labels": torch.tensor(labels),
        "next_sentence_label": torch.tensor(rows["next_sentence_labels"][:, 0], dtype=torch.long),
    }

    def take() -> None:
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return take


def main(argv: list[str]) -> None:
    """Time both sides in turns and print medians and ratio."""
    del argv
    jnp.zeros(()).block_until_ready()
    rows = make_rows(BATCH.value, LENGTH.value)
    sides = {"bert_jax": our_step(rows), "huggingface": their_step(rows)}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for take in sides.values():
        take()
    for _ in range(ROUNDS.value):
        for name, take in sides.items():
            begun = time.perf_counter()
            for _ in range(STEPS.value):
                take()
            times[name].append((time.perf_counter() - begun) / STEPS.value)
    speed = {name: BATCH.value / statistics.median(values) for name, values in times.items()}
    ratios = [theirs / ours for ours, theirs in zip(times["bert_jax"], times["huggingface"], strict=True)]
    result = {
        "model": MODEL.value,
        "max_seq_length": LENGTH.value,
        "batch_size": BATCH.value,
        "sequences_per_second": {name: round(value, 2) for name, value in speed.items()},
        "ratio_of_medians": round(speed["bert_jax"] / speed["huggingface"], 2),
        "ratio_by_round": [round(value, 2) for value in ratios],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)
