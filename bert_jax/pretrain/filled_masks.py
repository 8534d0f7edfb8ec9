"""What the model fills in for the masks of a few held-out sequences, at each evaluation: WORKDIR/samples.jsonl.

A line has `step` and `samples`; a sample has `text`, the parts of the text around its masks, and `masks`, each with the
`answer`, the most probable token (`guess`) and its `probability`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bert_jax.data.dataset_info import DatasetInfo
from bert_jax.data.loader import PretrainingBatches
from bert_jax.data.tokenization import Tokenizer
from bert_jax.model.heads import PretrainingModel
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.evaluation_program import EvaluationProgram
from bert_jax.pretrain.objective import PretrainingObjective
from bert_jax.types import PretrainingLogits, Rows

SAMPLES = "samples.jsonl"
_SEQUENCES, _MASKS = 4, 6  # shown: enough to see what is learned, few enough to read
_AFTER = 8  # tokens after the last mask


class FilledMasks:
    """The samples of one phase: held-out sequences with fixed masks, those of the evaluation's first batch."""

    def __init__(
        self,
        program: EvaluationProgram,
        *,
        objective: PretrainingObjective,
        info: DatasetInfo,
        tokenizer: Tokenizer,
        batch_size: int,
    ):
        """Read the batch. Nothing is compiled yet."""
        self._tokenizer = tokenizer
        shards, num_shards = meshes.batch_shards(program.mesh)
        batches = PretrainingBatches(
            info.directory,
            max_seq_length=info.max_seq_length,
            split="validation",
            batch_size=batch_size,
            seed=0,
            shards=shards,
            num_shards=num_shards,
            shuffle=False,
        )
        local = next(iter(batches.iterate(start=0, stop=1)))
        self._rows = Rows(**meshes.to_global(local, mesh=program.mesh))
        self._compute = _compiled(program, objective)

    def __call__(self, params: Any) -> list[dict[str, Any]]:
        """Return the samples for these parameters; every host calls this."""
        arrays = {name: np.asarray(array) for name, array in self._compute(params, self._rows).items()}
        rows = [{name: array[row] for name, array in arrays.items()} for row in range(len(arrays["input_ids"]))]
        samples = [_sample(row, tokenizer=self._tokenizer) for row in rows]
        return [sample for sample in samples if sample["masks"]]


def _compiled(
    program: EvaluationProgram, objective: PretrainingObjective
) -> Callable[[Any, Rows], Mapping[str, Array]]:
    """Return the jitted function that gives ids before masking, masked positions, answers and guesses of each sequence.

    The whole batch is computed, because kernels are mapped over its shards; the first sequences are returned.
    """

    def compute(params: Any, rows: Rows) -> dict[str, Array]:
        batch = objective.prepare(rows, key=jax.random.fold_in(program.key, 0))
        logits = cast(
            PretrainingLogits,
            PretrainingModel(objective.model).apply(
                {"params": params}, batch.inputs, positions=batch.positions, cls_positions=batch.cls_positions
            ),
        ).masked_lm
        values = {
            "input_ids": rows.input_ids,
            "positions": batch.positions,
            "labels": batch.labels,
            "weights": batch.weights,
            "guesses": jnp.argmax(logits, axis=-1),
            "probabilities": jnp.exp(logits.max(-1) - jax.nn.logsumexp(logits, axis=-1)),
        }
        return {name: array[:_SEQUENCES] for name, array in values.items()}

    whole = meshes.replicated(program.mesh)
    jitted = jax.jit(
        compute,
        in_shardings=(program.param_shardings, meshes.batch_sharding(program.mesh)),
        out_shardings=whole,
    )

    def call(params: Any, rows: Rows) -> Mapping[str, Array]:
        with meshes.use_mesh(program.mesh, rules=program.rules):
            return jitted(params, rows)

    return call


def _sample(row: Mapping[str, np.ndarray], *, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the first masks of a sequence and the text around them."""
    positions = row["positions"]
    slots = [slot for slot in np.argsort(positions, kind="stable") if row["weights"][slot] > 0][:_MASKS]
    ids, bounds = row["input_ids"].tolist(), [int(positions[slot]) for slot in slots]
    end = (bounds[-1] if bounds else 0) + 1 + _AFTER
    parts = zip([0, *(position + 1 for position in bounds)], [*bounds, end], strict=True)
    return {
        "text": [_text(ids[start:stop], tokenizer) for start, stop in parts],
        "masks": [
            {
                "answer": _token(int(row["labels"][slot]), tokenizer),
                "guess": _token(int(row["guesses"][slot]), tokenizer),
                "probability": round(float(row["probabilities"][slot]), 4),
            }
            for slot in slots
        ],
    }


def _text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Return the text of ids without [CLS] and padding."""
    return tokenizer.decode([index for index in ids if index not in (tokenizer.cls_id, tokenizer.pad_id)])


def _token(index: int, tokenizer: Tokenizer) -> str:
    # Rows of the word embeddings beyond the vocabulary belong to no token.
    return tokenizer.pieces[index] if index < tokenizer.vocab_size else f"[{index}]"
