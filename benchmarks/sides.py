"""The two sides of a training step that is timed beside HuggingFace PyTorch, on a CPU and on a GPU.

Both do the whole step on the same full rows: forward, backward, gradient clipping, AdamW; dropout 0.1 as the paper
trains. Ours also masks; HuggingFace gets masked ids and labels for free, no attention mask (rows are full, so that its
attention may take the fastest kernel), and computes logits at every position, as its class does.
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
    """Return the predictions of a row, the paper's 15 %."""
    return default_max_predictions(length, rate=0.15)


def make_rows(batch: int, length: int) -> dict[str, np.ndarray]:
    """Return full rows of random words: [CLS] A [SEP] B [SEP]."""
    return random_rows(batch, length=length, vocab_size=VOCAB)


def our_step(rows: dict[str, np.ndarray], *, config: Config) -> Callable[[int], float]:
    """Return a function that takes so many whole training steps, waits for them, and returns the last loss."""
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
    """Return the same for HuggingFace's class; parameters are float32, `autocast` computes in bfloat16."""
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
    """Return masked ids, labels (-100: none) and the rest, as HuggingFace names them."""
    ids, predictions = rows["input_ids"].astype(np.int64), num_predictions(rows["input_ids"].shape[1])
    rng = np.random.default_rng(1)
    labels = np.full(ids.shape, -100, np.int64)
    for row in range(len(ids)):
        chosen = rng.choice(np.arange(1, ids.shape[1] - 1), predictions, replace=False)
        labels[row, chosen] = ids[row, chosen]
    place = np.arange(ids.shape[1])[None]
    return {
        "input_ids": np.where(labels >= 0, SPECIAL.mask_id, ids),
        "token_type_ids": (place >= rows["segment_lengths"][:, 0, :1]).astype(np.int64),
        "labels": labels,
        "next_sentence_label": rows["next_sentence_labels"][:, 0].astype(np.int64),
    }
