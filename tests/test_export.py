"""Exported folders: complete, checked, and there as a whole or not at all."""

import dataclasses
import json
import shlex
import sys

import numpy as np
import pytest
from source_helpers import SMALL_TEST, assert_same_params, flat, random_source, vocabulary

from bert_jax.config import CheckpointConfig, Config
from bert_jax.convert import export_folder as module
from bert_jax.convert.export_folder import export_folder
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.vocabulary_extension import extend_source, read_words
from bert_jax.data.vocabulary import save_vocabulary
from bert_jax.errors import UserError
from bert_jax.model.architectures import ARCHITECTURES
from bert_jax.model.parameter_names import nest
from bert_jax.prediction.model import Model
from bert_jax.runs.checkpoint import Checkpointer
from tests import runs

BERT = ARCHITECTURES["bert"]
FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
}


def quiet(line: str) -> None:
    del line


def write_workdir(workdir, source, *, steps=(3,), **record):
    """Write checkpoints as a run does: the state with an optimiser's moments, and what it records."""
    import dataclasses

    config = dataclasses.asdict(dataclasses.replace(Config(), model=source.model))
    metadata = {"config": config, "fingerprints": {"vocabulary": "v" * 64, "data of length 128": "d" * 64}, **record}
    checkpointer = Checkpointer(workdir / "checkpoints", config=CheckpointConfig(), report=quiet)
    for step in steps:
        params = nest({name: array + np.float32(step - steps[-1]) for name, array in flat(source).items()})
        checkpointer.save(step, state={"params": params, "opt_state": {"mu": params}}, metadata=metadata)
    checkpointer.close()
    save_vocabulary(vocabulary(), directory=workdir / "vocab")
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


def test_folder_holds_all_files_of_the_contract_and_nothing_else(tmp_path):
    done = export_folder(random_source("small-test"), out=tmp_path / "out", report=quiet)
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    assert done.largest_difference < 1e-5
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_workdir_a_checkpoint_and_the_newest_one_are_found(tmp_path):
    source = random_source("small-test")
    write_workdir(tmp_path / "run", source, steps=(2, 5))
    newest = load_pretrained(tmp_path / "run", report=quiet)
    assert newest.record["step"] == 5
    assert_same_params(source, newest)
    earlier = load_pretrained(tmp_path / "run" / "checkpoints" / "2", report=quiet)
    assert earlier.record["step"] == 2
    np.testing.assert_array_equal(flat(earlier)["masked_lm/bias"], flat(source)["masked_lm/bias"] - 3)
    with pytest.raises(UserError, match=r"give one of the steps 2, 5"):
        load_pretrained(tmp_path / "run" / "checkpoints" / "4", report=quiet)


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(tmp_path):
    source = random_source("small-test")
    write_workdir(tmp_path / "run", source, steps=(2, 5))
    for file in (tmp_path / "run" / "checkpoints" / "5" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 10_000:
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 0xFF
            file.write_bytes(data)
    told = []
    assert load_pretrained(tmp_path / "run", report=told.append).record["step"] == 2
    assert "damaged checkpoint of step 5" in told[0]
    with pytest.raises(UserError, match="none of its checkpoints"):
        load_pretrained(tmp_path / "run" / "checkpoints" / "5", report=quiet)


def test_a_fine_tuned_checkpoint_brings_its_labels(tmp_path):
    source = random_source("small-test", architecture="BertForTokenClassification", num_labels=3)
    labels = ["O", "B-PER", "I-PER"]
    write_workdir(tmp_path / "run", source, architecture="BertForTokenClassification", labels=labels, kind="tags")
    loaded = load_pretrained(tmp_path / "run", report=quiet)
    assert (loaded.architecture, loaded.labels) == ("BertForTokenClassification", labels)
    export_folder(loaded, out=tmp_path / "out", report=quiet)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "O", "1": "B-PER", "2": "I-PER"}
    assert load_pretrained(tmp_path / "out").labels == labels


def test_card_tells_data_recipe_steps_and_measured_figures(tmp_path):
    write_workdir(tmp_path / "run", random_source("small-test"), steps=(3,))
    lines = [{"step": 1, "eval/mlm_loss": 9.5}, {"step": 3, "eval/mlm_loss": 1.25}, {"step": 9, "eval/mlm_loss": 0.5}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "run" / "metrics.jsonl").write_text(text + '{"step": 12, "eval/ml')
    export_folder(load_pretrained(tmp_path / "run", report=quiet), out=tmp_path / "out", report=quiet)
    card = (tmp_path / "out" / "README.md").read_text()
    for told in (
        "d" * 64,
        "v" * 64,
        "| recipe | modern |",
        "| steps | 3 of",
        "| mlm_loss | 1.2500 |",
        "pipeline_tag: fill-mask",
    ):
        assert told in card
    assert "0.5000" not in card  # measured after this checkpoint


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not empty"):
        export_folder(random_source("small-test"), out=tmp_path / "out", report=quiet)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("broken", ["write_tensors", "write_tokenizer_files", "_compare"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_behind_when_it_fails(tmp_path, monkeypatch, broken, error):
    real = getattr(module, broken)

    def fail(*args, **options):
        real(*args, **options)
        raise error

    monkeypatch.setattr(module, broken, fail)
    with pytest.raises((UserError, KeyboardInterrupt)):
        export_folder(random_source("small-test"), out=tmp_path / "out", report=quiet)
    assert not list(tmp_path.iterdir())


def test_tensors_that_the_disk_changed_are_noticed(tmp_path, monkeypatch):
    real = module.write_tensors

    def corrupt(folder, tensors, **options):
        tensors = dict(tensors)
        name = "bert.encoder.layer.1.attention.self.key.weight"
        tensors[name] = tensors[name].T.copy()  # square: only its values tell
        real(folder, tensors, **options)

    monkeypatch.setattr(module, "write_tensors", corrupt)
    with pytest.raises(UserError, match=r"differs .*attention\.self\.key"):
        export_folder(random_source("small-test"), out=tmp_path / "out", report=quiet)
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_the_name_table_is_noticed(tmp_path, monkeypatch):
    """Query and key swapped on the way out and on the way in: every tensor comes back, the outputs do not agree."""
    import dataclasses

    swapped = [
        dataclasses.replace(
            entry,
            huggingface=entry.huggingface.replace(".query.", ".x.")
            .replace(".value.", ".query.")
            .replace(".x.", ".value."),
        )
        for entry in BERT.names.entries
    ]
    changed = dataclasses.replace(BERT, names=dataclasses.replace(BERT.names, entries=tuple(swapped)))
    monkeypatch.setitem(ARCHITECTURES, "bert", changed)
    with pytest.raises(UserError, match="the outputs of the exported model differ"):
        export_folder(random_source("small-test"), out=tmp_path / "out", report=quiet)


def test_a_left_to_right_model_with_a_pooler_cannot_be_exported(tmp_path):
    with pytest.raises(UserError, match=r"attention_direction.*type --drop=pooler,next_sentence,classifier"):
        export_folder(
            random_source("small-test", attention_direction="left_to_right"), out=tmp_path / "out", report=quiet
        )


@pytest.mark.parametrize(
    ("architecture", "objective", "expected"),
    [
        ("BertForPreTraining", "causal", "BertLMHeadModel"),
        ("BertForPreTraining", "mlm", "BertForMaskedLM"),
        ("BertForTokenClassification", "", "BertForTokenClassification"),
    ],
)
def test_a_left_to_right_model_is_exported_as_a_decoder(tmp_path, architecture, objective, expected):
    source = random_source("small-test", architecture=architecture, attention_direction="left_to_right")
    if objective:
        config = {"train": {"objective": objective}, "data": {}}
        record = {"config": config, "untrained": ["pooler", "next_sentence"], "step": 1}
        source = dataclasses.replace(source, record=record, kind="workdir")
    lines = []
    exported = export_folder(source, out=tmp_path / "out", report=lines.append)
    assert exported.architecture == expected
    assert "is_decoder=True" in lines[0]
    assert ("without pooler, next_sentence" in lines[0]) == bool(objective)
    loaded = load_pretrained(tmp_path / "out")
    assert loaded.model.attention_direction == "left_to_right"
    assert loaded.predicts_next == (objective == "causal")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["is_decoder"] is True


def test_sentence_transformers_files_are_added(tmp_path):
    export_folder(
        random_source("small-test", architecture="BertModel"),
        out=tmp_path / "out",
        sentence_transformers=True,
        pooling="cls",
        report=quiet,
    )
    files = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    more = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
    assert files == FILES | more | {"1_Pooling/config.json", "2_Normalize/config.json"}
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_cls_token"]
    assert not pooling["pooling_mode_mean_tokens"]


def test_new_words_take_unused_slots_first_and_begin_as_the_mean_of_their_pieces():
    source = random_source("small-test")
    old = source.tokenizer
    words = ["heart", "lung", "the", "liver", "bone", "heart"]  # "the" is there, "heart" stands twice
    told = []
    extended = extend_source(source, words=words, report=told.append)
    assert "4 new words: 3 in unused slots, 1 in new rows" in told[0]
    new = extended.tokenizer
    assert new is not None
    assert old is not None
    assert [new.pieces.index(word) for word in ("heart", "lung", "liver", "bone")] == [5, 6, 7, old.vocab_size]
    assert extended.model.vocab_size == old.vocab_size + 1
    before = source.params["encoder"]["embeddings"]["word_embeddings"]
    after = extended.params["encoder"]["embeddings"]["word_embeddings"]
    bias, old_bias = extended.params["masked_lm"]["bias"], source.params["masked_lm"]["bias"]
    for word in ("heart", "lung", "liver", "bone"):
        assert new.encode(word) == [new.pieces.index(word)]
        np.testing.assert_array_equal(after[new.encode(word)[0]], before[old.encode(word)].mean(0))
        assert bias[new.encode(word)[0]] == old_bias[old.encode(word)].mean()
    untouched = [index for index in range(old.vocab_size) if index not in (5, 6, 7)]
    np.testing.assert_array_equal(after[untouched], before[untouched])


def test_an_extended_model_survives_export(tmp_path):
    extended = extend_source(random_source("small-test"), words=["heart", "lung", "liver", "bone"], report=quiet)
    export_folder(extended, out=tmp_path / "out", report=quiet)
    loaded = load_pretrained(tmp_path / "out")
    assert_same_params(extended, loaded)
    assert loaded.tokenizer is not None
    assert extended.tokenizer is not None
    assert loaded.tokenizer.fingerprint == extended.tokenizer.fingerprint


@pytest.mark.parametrize("word", ["Heart", "two words", "##ing", "a-b", "", "\u200b", "[unused9]"])
def test_a_word_that_the_tokenizer_never_sees_is_refused(word):
    with pytest.raises(UserError, match="new word"):
        extend_source(random_source("small-test"), words=[word], report=quiet)


def test_words_are_read_from_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("\ufeffheart\r\n\r\nlung\n", encoding="utf-8")
    assert read_words(tmp_path / "words.txt") == ["heart", "lung"]
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="list of words"):
        read_words(tmp_path / "words.txt")


def run_door(*arguments):
    command = [sys.executable, "-m", "bert_jax.export", *map(str, arguments)]
    return runs.run(command)


def test_the_door_exports_a_checkpoint_and_says_so(tmp_path):
    write_workdir(tmp_path / "run", random_source("small-test"))
    (tmp_path / "words.txt").write_text("heart\n")
    done = run_door(
        f"--checkpoint={tmp_path / 'run'}",
        f"--out={tmp_path / 'out'}",
        f"--extend_vocab={tmp_path / 'words.txt'}",
        "--dtype=bfloat16",
    )
    assert done.returncode == 0, done.stderr
    assert "BertForPreTraining" in done.stdout
    assert "equal bit for bit" in done.stdout
    code = done.stdout.splitlines()[-1]
    assert "\nnext:\n" in done.stdout
    assert shlex.split(code)[1:] == [
        "-c",
        f"from transformers import pipeline; print(pipeline('fill-mask', model='{tmp_path / 'out'}')"
        "('Paris is the [MASK] of France.'))",
    ]
    assert load_pretrained(tmp_path / "out").dtype == "bfloat16"
    again = run_door(f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")
    assert again.returncode == 2
    assert again.stderr.startswith("error: --out=")
    assert again.stderr.count("\n") == 1


def test_the_way_to_load_an_export_is_that_of_its_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    choice = random_source("small-test", architecture="BertForMultipleChoice")
    assert export_folder(choice, out="choice", report=quiet).example == (
        "from transformers import BertForMultipleChoice",
        "BertForMultipleChoice.from_pretrained('choice')",
    )
    sentences = export_folder(random_source("small-test"), out="s", sentence_transformers=True, report=quiet)
    assert sentences.example[1] == "SentenceTransformer('s').encode(['A sentence.'])"


def test_an_export_knows_the_longest_sequences_of_its_training():
    phases = [{"max_seq_length": 128, "fraction": 0.9}, {"max_seq_length": 512, "fraction": 0.1}]
    source = random_source("small-test")
    records = ({"config": {"train": {"phases": phases}}}, {"config": {"data": {"max_seq_length": 64}}}, {})
    assert [dataclasses.replace(source, record=record).longest_trained for record in records] == [512, 64, 0]


@pytest.mark.parametrize("truncation", ["head", "head_tail", "windows"])
def test_an_exported_model_reads_texts_as_its_training_did(tmp_path, truncation):
    source = random_source("small-test", architecture="BertForSequenceClassification")
    config = {"model": {}, "data": {"max_seq_length": 12, "truncation": truncation}, "train": {}}
    source = dataclasses.replace(source, record={"config": config, "step": 3})
    export_folder(source, out=tmp_path / "once", report=quiet)
    export_folder(load_pretrained(tmp_path / "once"), out=tmp_path / "twice", report=quiet)
    row = {"text": "the cat sat on the mat . " * 2 + "it ran to the red house !"}
    expected, _ = Model(source).task("classify").prepare(row)
    assert [len(example.ids) for example in expected] == [12] * (3 if truncation == "windows" else 1)
    for folder in (tmp_path / "once", tmp_path / "twice"):
        assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 12
        loaded = load_pretrained(folder)
        assert loaded.longest_trained == 12
        actual, _ = Model(loaded).task("classify").prepare(row)
        assert [list(example.ids) for example in actual] == [list(example.ids) for example in expected]
    assert "| sequence length | 12, of longer texts the " in (tmp_path / "once" / "README.md").read_text()


def test_a_folder_of_unknown_training_is_read_to_the_limit_of_its_tokenizer(tmp_path):
    export_folder(
        random_source("small-test", architecture="BertForSequenceClassification"), out=tmp_path / "out", report=quiet
    )
    file = tmp_path / "out" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    assert settings["model_max_length"] == SMALL_TEST.max_position_embeddings
    for limit, expected in ((12, 12), (10**30, 32), (64, 32), (-1, 32), (None, 32)):
        file.write_text(json.dumps(settings | {"model_max_length": limit}))
        loaded = load_pretrained(tmp_path / "out")
        assert loaded.longest_trained == 0
        (example,), _ = Model(loaded).task("classify").prepare({"text": "the cat " * 20})
        assert len(example.ids) == expected


def test_wrong_fields_of_ours_in_a_config_are_one_line(tmp_path):
    export_folder(random_source("small-test"), out=tmp_path / "out", report=quiet)
    file = tmp_path / "out" / "config.json"
    fields = json.loads(file.read_text())
    for wrong in ([1], "x", {"truncation": "middle"}, {"max_seq_length": "12"}, {"max_seq_length": -1}):
        file.write_text(json.dumps(fields | {"bert_jax": wrong}))
        with pytest.raises(UserError, match=r"config\.json: .*expected"):
            load_pretrained(tmp_path / "out")
