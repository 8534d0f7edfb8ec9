"""The training steps of bert_jax and of HuggingFace PyTorch that cpu_step.py and gpu_step.py compare.

Both run the whole step on the same full sequences: forward and backward pass, gradient clipping, AdamW; dropout 0.1 as
in the paper. They differ in two ways:

* Ours also samples the masks. HuggingFace gets masked ids and labels for free, and no attention mask, because sequences
  are full; its attention can then use the fastest kernel.
* HuggingFace computes logits at all positions, as its class does.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bert_jax.config import Config, MeshConfig, model_preset
from bert_jax.diagnosis.training_step import random_rows
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.masking import default_max_predictions
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.rows.special_ids import SpecialIds
from bert_jax.types import Rows

VOCAB = 30522
SPECIAL = SpecialIds(cls_id=101, sep_id=102, mask_id=103, pad_id=0, vocab_size=VOCAB)


def num_predictions(length: int) -> int:
    """Return the number of predictions per sequence, the paper's 15%."""
    return default_max_predictions(length, rate=0.15)


def make_rows(batch: int, length: int) -> dict[str, np.ndarray]:
    """Return full sequences of random tokens: [CLS] A [SEP] B [SEP]."""
    return random_rows(batch, length=length, vocab_size=VOCAB)


def our_step(rows: dict[str, np.ndarray], *, config: Config) -> Callable[[int], float]:
    """Return a function that runs N training steps, waits for them, and returns the last loss."""
    program = PretrainingProgram(config, mesh=meshes.make_mesh(MeshConfig(), devices=jax.devices()[:1]))
    step = program.train_step(program.phases[0], special=SPECIAL)
    on_device = Rows(**meshes.to_global(rows, mesh=program.mesh))
    state = program.random_state()

    def take(steps: int) -> float:
        nonlocal state
        for _ in range(steps):
            state, output = step(state, on_device)
        jax.block_until_ready(state)
        return float(output.means["loss"].total / output.means["loss"].weight)

    return take


def their_step(
    rows: dict[str, np.ndarray], *, model: str, device: str, autocast: bool, compiled: bool
) -> Callable[[int], float]:
    """Return the same for HuggingFace's class. Parameters are float32; `autocast` computes in bfloat16."""
    import torch
    import transformers

    shape = model_preset(model)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    arguments: dict[str, Any] = {name: getattr(shape, name) for name in names}
    length = rows["input_ids"].shape[1]
    arguments["max_position_embeddings"] = max(512, length)
    hf_config = transformers.BertConfig(**arguments)
    hf_config._attn_implementation = "sdpa"
    network: Any = transformers.BertForPreTraining(hf_config)
    network.train().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01, fused=device != "cpu")
    run: Any = torch.compile(network) if compiled else network
    inputs = {name: torch.from_numpy(array).to(device) for name, array in peer_inputs(rows).items()}

    def take(steps: int) -> float:
        for _ in range(steps):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
                loss = run(**inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.item())

    return take


def peer_inputs(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the inputs of HuggingFace's class: masked ids, labels (-100: none), and the others."""
    ids, predictions = rows["input_ids"].astype(np.int64), num_predictions(rows["input_ids"].shape[1])
    rng = np.random.default_rng(1)
    labels = np.full(ids.shape, -100, np.int64)
    for row in range(len(ids)):
        masked = rng.choice(np.arange(1, ids.shape[1] - 1), predictions, replace=False)
        labels[row, masked] = ids[row, masked]
    positions = np.arange(ids.shape[1])[None]
    return {
        "input_ids": np.where(labels >= 0, SPECIAL.mask_id, ids),
        "token_type_ids": (positions >= rows["segment_lengths"][:, 0, :1]).astype(np.int64),
        "labels": labels,
        "next_sentence_label": rows["next_sentence_labels"][:, 0].astype(np.int64),
    }
