"""Batched inference with a jitted function: batches of similar length for little padding, few shapes, order kept."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from bert_jax.prediction.rows import Example, RowError
from bert_jax.rows.layout import encoder_inputs
from bert_jax.types import EncoderInputs, InstanceRows

WINDOW = 4096  # rows read and sorted by length at a time; bounds memory
# On a CPU, from this number of sequences on, 4% padding instead of 14% is worth 20 more compilations of 0.4 s.
FINE_FROM = 4096
Prepared = TypeVar("Prepared")


class Predictor(Protocol[Prepared]):
    """The interface of a prediction task."""

    parts: tuple[str, ...]

    def prepare(self, row: Mapping[str, Any]) -> tuple[list[Example], Prepared]:
        """Return the sequences of a row, and what `result` needs to know about it.

        Raises:
          RowError: if the row does not have the fields that the task reads.
        """
        ...

    def compute(self, params: Any, inputs: EncoderInputs, positions: Int[Array, "B P"]) -> Any:
        """Return a tree of arrays whose first axis is the sequence. This function is jitted."""
        ...

    def result(self, prepared: Prepared, outputs: list[Any]) -> dict[str, Any]:
        """Return the answer to a row. `outputs` has one NumPy tree per sequence."""
        ...


class Engine:
    """The parameters on the device and the compiled functions."""

    def __init__(self, params: Any, *, pad_id: int, max_length: int, max_tokens: int | None = None):
        """Set up batches of at most `max_tokens` tokens, padding included.

        The default is 2,048 on a CPU, where activations then stay in the caches, and 65,536 on an accelerator.
        """
        self._params = jax.tree.map(jnp.asarray, params)
        self._pad_id, self.max_length = pad_id, max_length
        self._cpu = jax.default_backend() == "cpu"
        self._max_tokens = max_tokens or (2048 if self._cpu else 65536)
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self.num_cut = 0  # rows so far of which a part was not read

    def predict(self, task: Predictor[Any], rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the answer to each of `rows`, in order. The answer to a wrong row is `{"error": ...}`."""
        iterator = iter(rows)
        while window := list(islice(iterator, WINDOW)):
            yield from self._window(task, window)

    def _window(self, task: Predictor[Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        examples: list[Example] = []
        prepared: list[tuple[int, int, Any] | str] = []
        for row in rows:
            try:
                more, note = task.prepare(row)
            except RowError as error:
                prepared.append(str(error))
                continue
            prepared.append((len(examples), len(examples) + len(more), note))
            self.num_cut += any(example.is_cut for example in more)
            examples += more
        outputs = self.run(task.compute, examples)
        for entry in prepared:
            if isinstance(entry, str):
                yield {"error": entry}
            else:
                start, end, note = entry
                yield task.result(note, outputs[start:end])

    def run(self, compute: Callable[..., Any], examples: Sequence[Example]) -> list[Any]:
        """Return the NumPy tree of each example, in order."""
        lengths = [len(example.ids) for example in examples]
        results: list[Any] = [None] * len(examples)
        if compute not in self._compiled:
            self._compiled[compute] = jax.jit(_from_rows(compute))
        # The next batch is prepared while the device computes this one.
        pending: tuple[list[int], Any] | None = None
        fine = self._cpu and len(examples) >= FINE_FROM
        for indices, length in batches(lengths, max_tokens=self._max_tokens, max_length=self.max_length, fine=fine):
            batch = [examples[index] for index in indices]
            arrays = padded(batch, length=length, pad_id=self._pad_id, max_rows=max(1, self._max_tokens // length))
            running = (indices, self._compiled[compute](self._params, *arrays))
            if pending is not None:
                _deliver(results, *pending)
            pending = running
        if pending is not None:
            _deliver(results, *pending)
        return results


def _from_rows(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Return `compute` as a function of `InstanceRows`, so that their layout is part of the compiled program."""

    def call(params: Any, rows: InstanceRows, positions: Int[Array, "B P"]) -> Any:
        return compute(params, encoder_inputs(rows), positions)

    return call


def _deliver(results: list[Any], indices: Sequence[int], outputs: Any) -> None:
    leaves, tree = jax.tree.flatten(jax.device_get(outputs))
    for row, index in enumerate(indices):
        results[index] = jax.tree.unflatten(tree, [leaf[row] for leaf in leaves])


def bucket(length: int, *, max_length: int, fine: bool = False) -> int:
    """Return the padded length: a multiple of 8 up to 64, of 16 up to 128, of 32 up to 256, of 64 above.

    `fine` divides these steps by 4, for a third of the padding and three times as many shapes to compile.
    """
    step = next((step for limit, step in ((64, 8), (128, 16), (256, 32)) if length <= limit), 64)
    step = step // 4 if fine else step
    return min(-(-length // step) * step, max(max_length, length))


def batches(
    lengths: Sequence[int], *, max_tokens: int, max_length: int, fine: bool = False
) -> Iterator[tuple[list[int], int]]:
    """Yield the indices of each batch and its padded length, the longest first: running out of memory shows early."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        length = bucket(lengths[order[start]], max_length=max_length, fine=fine)
        limit = max(1, max_tokens // length)
        # Shorter sequences fill the batch: partial batches for each length would cost more padding.
        yield order[start : start + limit], length
        start += limit


def padded(
    examples: Sequence[Example], *, length: int, pad_id: int, max_rows: int
) -> tuple[InstanceRows, Int[Array, "B P"]]:
    """Return the batch. Sequences (up to `max_rows`) and positions are padded to a power of two, for few shapes."""
    rows = min(_power_of_two(len(examples)), max(max_rows, len(examples)))
    input_ids = np.full((rows, length), pad_id, np.int32)
    segment_lengths = np.zeros((rows, 1, 2), np.int32)
    positions = np.zeros((rows, _power_of_two(max(len(example.positions) for example in examples))), np.int32)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.ids)] = example.ids
        segment_lengths[row] = example.first_length, len(example.ids) - example.first_length
        positions[row, : len(example.positions)] = example.positions
    return InstanceRows(jnp.asarray(input_ids), jnp.asarray(segment_lengths)), jnp.asarray(positions)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
