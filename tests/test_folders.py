"""Folders that people have: prefixed names, unused poolers, other layouts. Each is read, or named with what to give."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from source_helpers import assert_same_params, random_source
from test_tf1 import tf1_tensors, write_release
from tf1_writer import write_checkpoint

from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.huggingface import read_tensors
from bert_jax.convert.loading import initial_params, load_pretrained
from bert_jax.convert.model_card import model_card
from bert_jax.convert.safetensors_file import write_safetensors
from bert_jax.errors import UserError
from tests.runs import run


def quiet(line: str) -> None:
    del line


def folder_of(path: Path, architecture: str = "BertForPreTraining", **fields: object) -> Path:
    export_folder(random_source("small-test", architecture=architecture), out=path, report=quiet)
    change_config(path, **fields)
    return path


def change_config(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rename(folder: Path, change: Callable[[str], str]) -> None:
    tensors = {change(name): np.array(array) for name, array in read_tensors(folder).items()}
    write_safetensors(folder / "model.safetensors", tensors)


def refused(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load_pretrained(path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


PREFIXES: dict[str, Callable[[str], str]] = {
    "module.": lambda name: f"module.{name}",
    "model.": lambda name: f"model.{name}",
    "_orig_mod.module.": lambda name: f"_orig_mod.module.{name}",
    "bert.": lambda name: f"bert.{name}" if name.startswith("bert.") else name,
    "encoder_q.": lambda name: name.replace("bert.", "encoder_q.") if name.startswith("bert.") else name,
}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_common_prefix_is_left_out_with_a_line(tmp_path, prefix):
    folder, lines = folder_of(tmp_path / "out"), []
    rename(folder, PREFIXES[prefix])
    assert_same_params(random_source("small-test"), load_pretrained(folder, report=lines.append))
    assert lines == [f"{folder}: the names of the tensors begin with {prefix!r}, which is left out"]


def test_two_encoders_are_refused_and_one_can_be_chosen(tmp_path):
    folder = folder_of(tmp_path / "out", architecture="BertModel")
    tensors = {name: np.array(array) for name, array in read_tensors(folder).items()}
    both = {f"{side}.{name}": array for side in ("query", "passage") for name, array in tensors.items()}
    write_safetensors(folder / "model.safetensors", both)
    line = refused(folder)
    assert "contains 2 encoders, whose tensors begin with 'passage.', 'query.'" in line
    assert "--drop='query.*'" in line
    loaded = load_pretrained(folder, drop=["query.*"], report=quiet)
    assert_same_params(random_source("small-test", architecture="BertModel"), loaded)


def test_no_advice_makes_an_encoder_random(tmp_path):
    folder = folder_of(tmp_path / "out")
    rename(folder, lambda name: name.replace("attention.self.query", "attention.self.q"))
    line = refused(folder)
    assert "parts of the encoder are missing" in line
    assert "--init_missing" not in line
    assert "--drop" not in line


def test_a_random_encoder_is_warned_of_wherever_it_goes(tmp_path):
    folder, lines = folder_of(tmp_path / "out", architecture="BertModel"), []
    rename(folder, lambda name: name.replace("encoder.layer.0.attention.self.query", "gone"))
    loaded = load_pretrained(folder, init_missing=["encoder"], drop=["gone.*"], report=lines.append)
    assert loaded.random == ("encoder/layers/query/kernel", "encoder/layers/query/bias")
    assert "WARNING: parts of the encoder are random" in lines[-1]
    assert "randomly initialized: encoder/layers/query/kernel" in model_card(loaded, name="x", dtype="float32")


def test_what_is_random_is_named_in_log_card_result_and_last_line(tmp_path):
    folder = folder_of(tmp_path / "model", architecture="BertModel")
    command = [sys.executable, "-m", "bert_jax.export", f"--checkpoint={folder}", f"--out={tmp_path / 'out'}"]
    done = run([*command, "--init_missing=masked_lm,next_sentence"])
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert any(line == f"{folder}: randomly initialized: masked_lm, next_sentence" for line in lines)
    exported = next(line for line in done.stdout.splitlines() if line.startswith("exported to"))
    assert exported.endswith("randomly initialized: masked_lm, next_sentence")
    assert done.stdout.splitlines()[-1] == "warning: randomly initialized: masked_lm, next_sentence"
    assert "randomly initialized: masked_lm, next_sentence" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("has", "declared", "kept"),
    [
        ("BertForSequenceClassification", "BertForTokenClassification", True),
        ("BertForPreTraining", "BertForQuestionAnswering", False),
    ],
)
def test_an_unused_pooler_is_kept_for_training_and_skipped_in_exports(tmp_path, has, declared, kept):
    folder = folder_of(tmp_path / "out", architecture=has, architectures=[declared])
    if not kept:  # a folder of a question answering model with a pooler, as TF1 writes it
        folder = folder_of(tmp_path / "qa", architecture=declared)
        pooler = {
            name: np.array(array)
            for name, array in read_tensors(tmp_path / "out").items()
            if name.startswith("bert.pooler")
        }
        write_safetensors(
            folder / "model.safetensors", {name: np.array(a) for name, a in read_tensors(folder).items()} | pooler
        )
    lines: list[str] = []
    assert "pooler" not in load_pretrained(folder, report=lines.append).parts
    assert lines == [f"{folder}: skipped the pooler, which {declared} does not have"]
    loose = load_pretrained(folder, exact=False)
    assert "pooler" in loose.parts
    assert loose.architecture == declared


def test_a_masked_lm_with_a_pooler_gives_it_to_training(tmp_path):
    folder = folder_of(tmp_path / "out")
    rename(folder, lambda name: name.replace("cls.seq_relationship", "gone"))
    change_config(folder, architectures=["BertForMaskedLM"])
    loose = load_pretrained(folder, drop=["gone.*"], exact=False)
    assert loose.parts == ("encoder", "pooler", "masked_lm")
    with pytest.raises(UserError, match="--init_missing=next_sentence"):
        initial_params(loose, model=loose.model)


def test_a_head_put_on_a_bare_model_leaves_its_pooler_out(tmp_path):
    folder, lines = folder_of(tmp_path / "out", architecture="BertModel"), []
    loaded = load_pretrained(folder, init_missing=["masked_lm"], report=lines.append)
    assert (loaded.architecture, loaded.parts) == ("BertForMaskedLM", ("encoder", "masked_lm"))
    assert lines == [
        f"{folder}: skipped the pooler, which BertForMaskedLM does not have",
        f"{folder}: randomly initialized: masked_lm",
    ]


def test_training_commands_need_no_head_that_they_replace(tmp_path):
    folder = folder_of(tmp_path / "out", architecture="BertModel", architectures=["BertForSequenceClassification"])
    assert "--init_missing=classifier" in refused(folder)
    loose = load_pretrained(folder, exact=False)
    assert (loose.architecture, loose.parts) == ("BertModel", ("encoder", "pooler"))


@pytest.mark.parametrize("command", ["train", "finetune", "evaluate", "predict", "export"])
def test_every_command_that_loads_a_model_has_the_same_flags(command):
    shown = run([sys.executable, "-m", f"bert_jax.{command}", "--help"])
    for flag in ("--init_missing", "--drop"):
        assert flag in shown.stdout + shown.stderr


@pytest.mark.parametrize("given", ["", "models--x--y", "models--x--y/snapshots"])
def test_a_download_cache_is_named_with_the_folder_to_give(tmp_path, given):
    folder = tmp_path / "models--x--y" / "snapshots" / "abc"
    folder.parent.mkdir(parents=True)
    folder_of(folder)
    line = refused(tmp_path / given)
    assert "a download cache of HuggingFace" in line
    assert line.endswith(str(folder))


def test_folders_that_are_no_model_say_what_they_are(tmp_path):
    def told(name: str, *files: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text("{}")
        return refused(folder)

    pickled = told("pickle", "bert_config.json", "pytorch_model.bin", "vocab.txt")
    assert "pickle files are not read" in pickled
    assert "copy bert_config.json to config.json" in pickled
    assert "copy bert_config.json to config.json" in told("renamed", "bert_config.json", "model.safetensors")
    assert "no bert_config.json: copy albert_config.json" in told("tf1", "albert_config.json", "bert_model.ckpt.index")
    assert "no bert_config.json: copy config.json" in told("tf1_json", "config.json", "model.ckpt-5.index")
    assert "from_tf=True" in told("keras", "config.json", "tf_model.h5")
    assert "a PEFT adapter" in told("adapter", "adapter_config.json", "adapter_model.safetensors")
    assert "give a folder in it" in told("trainer", "checkpoint-500/config.json")
    assert "contains neither model.safetensors" in told("empty", "config.json")


def test_object_based_checkpoints_of_tf2_are_named(tmp_path):
    names = ("model/layer-0/kernel/.ATTRIBUTES/VARIABLE_VALUE", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")
    write_checkpoint(tmp_path / "ckpt-1", {names[0]: np.zeros(3, np.float32), names[1]: np.array(1, np.int64)})
    (tmp_path / "bert_config.json").write_text(
        '{"vocab_size": 9, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4,'
        ' "max_position_embeddings": 8, "hidden_act": "gelu"}'
    )
    assert "a TF2 object-based checkpoint (model/layer-0/kernel" in refused(tmp_path)


def test_integers_and_a_scope_of_tf1_are_left_out(tmp_path):
    source = random_source("small-test")
    write_release(tmp_path, source)
    tensors = {f"module/{name}": array for name, array in tf1_tensors(source, adam=False).items()}
    write_checkpoint(tmp_path / "bert_model.ckpt", tensors | {"local_step": np.array([3], np.int64)})
    lines: list[str] = []
    assert_same_params(source, load_pretrained(tmp_path, report=lines.append))
    assert lines == [
        f"{tmp_path / 'bert_model.ckpt'}: the names of the tensors begin with 'module/', which is left out"
    ]


def test_a_source_names_nothing_random_unless_it_is():
    source = random_source("small-test")
    assert source.randomness == ""
    assert dataclasses.replace(source, random=("pooler",)).randomness == "randomly initialized: pooler"
