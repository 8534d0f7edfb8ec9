"""A packed data set trains: each instance as if alone, from the files to the gradients; runs, resumes, evaluates."""

import dataclasses
import functools
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from packed_rows import instances_alone
from text_corpus import make_documents, write_corpus, write_vocabulary
from tiny_model import on_host, tiny_model, to_device

from bert_jax.config import (
    Config,
    DataConfig,
    MaskingConfig,
    OptimizerConfig,
    PhaseConfig,
    TrainConfig,
    validate,
)
from bert_jax.data.builder import build_dataset
from bert_jax.data.loader import PretrainingBatches
from bert_jax.errors import UserError
from bert_jax.model.heads import PretrainingModel
from bert_jax.parallel import mesh as meshes
from bert_jax.pretrain.dataset import open_datasets, open_tokenizer
from bert_jax.pretrain.dry_run import describe_run
from bert_jax.pretrain.evaluate_pretrained import evaluate_pretrained
from bert_jax.pretrain.masking import predictions_per_length, row_predictions
from bert_jax.pretrain.objective import PretrainingObjective
from bert_jax.pretrain.program import PretrainingProgram
from bert_jax.types import EncoderInputs, PretrainingBatch, Rows
from tests.rounding import assert_trees_rounded_alike, encoder_bound, gradient_bound
from tests.runs import checksums, figures, run, train_command

pytestmark = pytest.mark.numerics

LENGTH, PER_ROW, INSTANCE = 64, 6, 24
STEPS = ("train.num_steps=6", "checkpoint.every=3", "eval.every=3", "eval.max_examples=1000", "log.every=3")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a packed data set: instances of up to 24 tokens in rows of 64."""
    packing = {"pack": True, "max_instances_per_row": PER_ROW, "max_instance_length": INSTANCE}
    return build(tmp_path_factory.mktemp("packed"), LENGTH, **packing)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of the same text, not packed: rows of 24."""
    return build(tmp_path_factory.mktemp("plain"), INSTANCE)


def build(folder: Path, length: int, **changes: Any) -> Path:
    write_vocabulary(folder / "vocabulary")
    text = write_corpus(folder / "text", make_documents(200, max_sentences=12))
    data = DataConfig(
        input=str(text), vocab=str(folder / "vocabulary"), heldout_fraction=0.1, num_workers=1, seed=3, **changes
    )
    build_dataset(data, out=folder / "data", max_seq_lengths=[length], vocab_size=0, report=lambda text: None)
    return folder / "data"


def config_for(directory: Path, **data: Any) -> Config:
    fields = {"directory": str(directory), "pack": True, "max_instances_per_row": PER_ROW, **data}
    return validate(
        Config(
            model=tiny_model(vocab_size=600, num_attention_heads=2),
            data=DataConfig(**fields),
            optimizer=OptimizerConfig(warmup_steps=2, learning_rate=1e-2),
            train=TrainConfig(num_steps=6, batch_size=16, phases=(PhaseConfig(max_seq_length=LENGTH),)),
        )
    )


@functools.cache
def loaded(directory: Path) -> tuple[Rows, PretrainingBatch, PretrainingObjective]:
    """Return a batch as the loader has it, masked, and the objective; on the host."""
    batches = PretrainingBatches(directory, max_seq_length=LENGTH, batch_size=16, seed=1)
    rows = on_host(Rows, **batches[0])
    config = config_for(directory)
    program = PretrainingProgram(config, mesh=meshes.make_mesh(config.mesh))
    objective = program.objective(program.phases[0], special=open_tokenizer(batches.info).special_ids)
    return rows, jax.device_get(objective.prepare(to_device(rows), key=jax.random.key(5))), objective


def with_empty(batch: PretrainingBatch, *, rows: int, slots: int) -> PretrainingBatch:
    """Return `batch` filled up to a shape with rows and slots that weigh nothing."""

    def fill(name: str, leaf: np.ndarray) -> np.ndarray:
        widths = [(0, rows - len(leaf))] + [(0, 0)] * (leaf.ndim - 1)
        if name in ("cls_positions", "next_sentence_labels", "next_sentence_weights"):
            widths[1] = (0, slots - leaf.shape[1])
        return np.pad(leaf, widths)

    return jax.tree_util.tree_map_with_path(lambda path, leaf: fill(path[-1].name, leaf), batch)


@pytest.mark.slow
def test_packed_files_give_each_instance_its_outputs_and_gradients_alone(packed: Path):
    rows, batch, objective = loaded(packed)
    assert (rows.segment_lengths.sum(-1) > 0).sum() > 2 * len(rows.input_ids)
    alone = instances_alone(rows, batch)
    num_alone = len(alone.rows)
    batch, alone = (with_empty(some, rows=num_alone, slots=PER_ROW) for some in (batch, alone))  # compiled once
    model = PretrainingModel(objective.model)
    sample = jnp.zeros((1, 1), jnp.int32)
    empty = EncoderInputs(sample, sample, sample, sample)
    init = jax.jit(lambda: model.init(jax.random.key(0), empty, positions=sample, cls_positions=sample))
    params = nn.meta.unbox(init()["params"])

    @jax.jit
    def run(some: PretrainingBatch) -> Any:
        def loss(p: Any) -> Any:
            logits = model.apply({"params": p}, some.inputs, positions=some.positions, cls_positions=some.cls_positions)
            value, means = objective.loss(p, batch=some, weights=objective.weights(some), key=None)
            return value, (logits, means)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (logits, means)), gradients = jax.device_get(run(to_device(batch)))
    (loss_alone, (logits_alone, means_alone)), gradients_alone = jax.device_get(run(to_device(alone)))
    # Outputs: predictions and instances come in the same order, row by row and from left to right.
    for name, mine, theirs in [
        ("masked_lm", batch.weights > 0, alone.weights > 0),
        ("next_sentence", batch.next_sentence_weights > 0, alone.next_sentence_weights > 0),
    ]:
        together, apart = getattr(logits, name)[mine], getattr(logits_alone, name)[theirs]
        assert len(together) == len(apart) > 30
        assert_trees_rounded_alike(together, apart, bound=encoder_bound(objective.model))
    assert_trees_rounded_alike(loss, loss_alone, bound=encoder_bound(objective.model))
    for name in ("mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy"):
        assert means[name].weight == means_alone[name].weight
    for tree in (gradients, gradients_alone):
        tree["encoder"]["layers"]["key"].pop("bias")  # has no influence: a softmax does not see a constant
    bound = gradient_bound(objective.model, tokens=num_alone * LENGTH)
    assert_trees_rounded_alike(gradients, gradients_alone, bound=bound)
    # The means are over all predictions and all instances of the batch, whatever row they stand in.
    assert means["mlm_loss"].weight == batch.weights.sum()
    assert means["nsp_loss"].weight == means["instances_per_row"].total == num_alone
    real = rows.segment_lengths.sum()
    assert means["padding_fraction"].total == num_alone * LENGTH - real


@pytest.mark.parametrize("whole_word", [False, True])
def test_no_instance_of_a_packed_row_gets_fewer_predictions(packed: Path, whole_word: bool):
    rows, _, objective = loaded(packed)
    masking = MaskingConfig(whole_word=whole_word)
    batch = jax.device_get(
        dataclasses.replace(objective, masking=masking).prepare(to_device(rows), key=jax.random.key(2))
    )
    alone = instances_alone(rows, batch)
    counts, lengths = alone.weights.sum(-1), alone.inputs.segment_ids.sum(-1)
    table = np.array(predictions_per_length(LENGTH, rate=0.15, limit=objective.max_predictions_per_seq))
    if whole_word:
        assert (counts <= table[lengths]).all()
        assert (counts == table[lengths]).mean() > 0.9
    else:
        np.testing.assert_array_equal(counts, table[lengths])


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.4])
@pytest.mark.parametrize(("length", "instances"), [(16, 2), (20, 4), (24, 8)])
def test_slots_of_a_packed_row_are_those_of_the_worst_one(length: int, instances: int, rate: float):
    limit = max(1, round(rate * length))
    counts = predictions_per_length(length, rate=rate, limit=limit)

    def partitions(left: int, most: int, parts: int):
        yield 0
        for size in range(3, min(left, most) + 1) if parts else ():
            yield from (counts[size] + rest for rest in partitions(left - size, size, parts - 1))

    assert row_predictions(length, instances=instances, rate=rate, limit=limit) == max(
        partitions(length, length, instances)
    )


def test_slots_are_few_and_those_of_unpacked_rows_unchanged():
    found = {
        (length, instances): row_predictions(length, instances=instances, rate=0.15, limit=limit)
        for (length, limit), instances in itertools.product([(128, 20), (512, 77)], [1, 4, 16])
    }
    assert found == {(128, 1): 20, (128, 4): 21, (128, 16): 27, (512, 1): 77, (512, 4): 78, (512, 16): 85}


def test_a_limit_set_by_hand_is_that_of_each_instance(packed: Path):
    config = config_for(packed)
    phase = PhaseConfig(max_seq_length=LENGTH, max_predictions_per_seq=2)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, phases=(phase,)))
    program = PretrainingProgram(config, mesh=meshes.make_mesh(config.mesh))
    objective = program.objective(program.phases[0], special=loaded(packed)[2].special)
    assert objective.max_predictions == 2 * PER_ROW
    rows = loaded(packed)[0]
    batch = jax.device_get(objective.prepare(to_device(rows), key=jax.random.key(2)))
    alone = instances_alone(rows, batch)
    lengths = alone.inputs.segment_ids.sum(-1)
    np.testing.assert_array_equal(alone.weights.sum(-1), np.where(lengths >= 10, 2, 1))


@pytest.fixture(scope="module")
def workdir(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    train(path, packed)
    return path


def train(workdir: Path, packed: Path) -> None:
    data = ("data.pack=True", f"data.max_instances_per_row={PER_ROW}", "model.vocab_size=600")
    done = run(train_command(workdir, *STEPS, *data, f"train.phases[0].max_seq_length={LENGTH}", data=packed))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_says_how_many_instances_a_second_it_learns_from(workdir: Path, packed: Path):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "train/loss" in line][-1]
    ratio = last["perf/instances_per_second"] / last["perf/sequences_per_second"]
    assert ratio == pytest.approx(last["perf/instances_per_row"])
    batches = PretrainingBatches(packed, max_seq_length=LENGTH, batch_size=16, seed=0)
    counted = [(batches[step]["segment_lengths"].sum(-1) > 0).sum() for step in (3, 4, 5)]
    assert last["perf/instances_per_row"] == pytest.approx(sum(counted) / 48)
    padding = [1 - batches[step]["segment_lengths"].sum() / (16 * LENGTH) for step in (3, 4, 5)]
    assert last["perf/padding_fraction"] == pytest.approx(np.mean(padding), abs=1e-6)
    assert not any("instances_per_row" in name for line in lines for name in line if not name.startswith("perf/"))


def test_a_run_on_packed_rows_resumes_bit_for_bit(workdir: Path, packed: Path, tmp_path: Path):
    again = tmp_path / "run"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "6")
    train(again, packed)
    assert checksums(again) == checksums(workdir)
    assert figures(again) == figures(workdir)


def test_packed_and_unpacked_rows_of_one_text_give_a_model_the_same_figures(workdir: Path, plain: Path):
    together = evaluate_pretrained(workdir, max_examples=1000, report=lambda text: None)
    loop = [line for line in figures(workdir) if line["step"] == 6 and "eval/mlm_loss" in line][-1]
    bound = encoder_bound(config_for(plain).model)
    assert_trees_rounded_alike(together["eval/mlm_loss"], loop["eval/mlm_loss"], bound=bound)
    apart = evaluate_pretrained(
        workdir, data=str(plain), max_seq_length=INSTANCE, max_examples=1000, report=lambda text: None
    )
    assert apart["examples"] > 1.5 * together["examples"]
    # Other draws and other masks over the same documents: hundreds of predictions each.
    for name in ("eval/mlm_loss", "eval/unigram_loss"):
        assert together[name] == pytest.approx(apart[name], abs=0.3), name


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"pack": False, "max_instances_per_row": 0}, "set --config.data.pack=True"),
        ({"max_instances_per_row": 0}, "at most 6 instances, config.data.max_instances_per_row=0 means 4"),
        ({"max_instances_per_row": 9}, "set --config.data.max_instances_per_row=6"),
    ],
)
def test_config_and_data_set_that_disagree_are_one_line(packed: Path, tmp_path: Path, data: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says) as error:
        open_datasets(config_for(packed, **data), workdir=tmp_path, max_seq_lengths=(LENGTH,), report=print)
    assert "\n" not in str(error.value)


def test_unpacked_data_under_a_packed_config_is_one_line(plain: Path, tmp_path: Path):
    config = config_for(plain)
    with pytest.raises(UserError, match=r"without --pack: set --config.data.pack=False"):
        open_datasets(config, workdir=tmp_path, max_seq_lengths=(INSTANCE,), report=print)


def test_the_dry_run_names_the_slots_of_packed_rows(packed: Path):
    config = config_for(packed)
    program = PretrainingProgram(config, mesh=meshes.make_mesh(config.mesh))
    phase = program.phases[0]
    assert (phase.max_predictions_per_seq, program.max_predictions(phase)) == (10, 12)
    assert f"0-5                 {LENGTH:<6}  12 " in describe_run(program, infos={})
