"""What the configs of fine-tuning take: their documented arguments, and tiny data for each in its official format."""

import dataclasses
import importlib.util
import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from bert_jax.config.finetuning import FinetuneConfig, from_config_dict
from bert_jax.config.task_options import DataOptions, SquadOptions
from bert_jax.tasks import glue
from tests.finetune_data import write_conll, write_jsonl
from tests.runs import ROOT

ROWS = 8
SQUAD_VERSIONS = {"squad_v1": "v1.1", "squad_v2": "v2.0"}
CONTEXT = "the film was very good and it was fine"
# As many tokens with [CLS] and [SEP] as the pair of "the film" and itself: tasks of one kind then share a program.
SINGLE = "the film was the film"
ANSWER = {"text": "very good", "answer_start": CONTEXT.index("very")}
ENDINGS = ["was bad", "was good", "was sad", "was nice"]
OWN: dict[str, list[dict[str, Any]]] = {
    "classification": [{"text": SINGLE, "label": label} for label in ("good", "bad")],
    "regression": [{"text": SINGLE, "label": 2.5}],
    "tags": [{"words": ["the", "good", "film", "was"] * 3, "tags": ["O", "I-PER", "I-PER", "O"] * 3}],
    "span": [{"question": "was it", "context": CONTEXT, "answer": ANSWER["text"]}],
    "choice": [{"text": "it", "choices": ENDINGS, "label": 2}],
    "multilabel": [{"text": "it was good", "label": ["a", "b"]}],
}


EMBED: dict[str, dict[str, Any]] = {
    "pairs": {"anchor": "the film", "positive": "it was good"},
    "triplets": {"anchor": "the film", "positive": "it was good", "negative": ["it was bad"]},
    "scores": {"anchor": "the film", "positive": "it was good", "score": 2.5},
    "texts": {"anchor": "the film", "positive": "it was good"},
}


def config_module(name: str) -> ModuleType:
    """Return the module of a file in `configs/`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented_arguments(name: str) -> set[str]:
    """Return the default, and the words that a config's docstring lists in the sentence "The argument is ..."."""
    module = config_module(name)
    parameters = inspect.signature(module.get_config).parameters.values()
    text = " ".join((module.__doc__ or "").split())
    # Of what is in parentheses, lists of words count: "a task (cola, sst2), several separated by commas, or all".
    text = re.sub(r"\(([^)]*)\)", lambda found: f", {found[1]}" if re.fullmatch(r"\w+(, \w+)+", found[1]) else "", text)
    sentence = re.search(r"The argument is ([^.]*)\.", text)
    items = re.split(r", or |, | or ", sentence[1].rpartition(":")[2].strip()) if sentence else []
    return {item for item in items if re.fullmatch(r"\w+", item)} | {parameter.default for parameter in parameters}


def load_config(name: str, argument: str | None) -> FinetuneConfig:
    """Return the validated config of an argument; None where the config takes none."""
    get_config = config_module(name).get_config
    return from_config_dict(get_config() if argument is None else get_config(argument))


def shrink(config: FinetuneConfig, *, directory: Path) -> FinetuneConfig:
    """Return the same procedure on rows of 32 tokens, eight examples per step; on the config's mesh."""
    small_tagger = {"bilstm_hidden_size": 8, "bilstm_layers": 1}
    return dataclasses.replace(
        config,
        data=DataOptions(directory=str(directory), max_seq_length=32),
        squad=config.squad and SquadOptions(max_query_length=8, doc_stride=4),
        ner=config.ner and dataclasses.replace(config.ner, **small_tagger),
        train=dataclasses.replace(config.train, batch_size=ROWS),
    )


def write_data(folder: Path, *, task: str, kind: str = "") -> Path:
    """Write train and dev files of a task, of custom data of a kind."""
    folder.mkdir(parents=True)
    if task in glue.TASKS:
        _write_glue(folder, name=task)
    elif task == "ner":
        write_conll(folder)
    elif task == "swag":
        header = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label\n"
        for name in ("train", "val"):
            rows = "".join(f"{i},,,s,the film,it,,{','.join(ENDINGS)},{i % 4}\n" for i in range(ROWS))
            (folder / f"{name}.csv").write_text(header + rows)
    elif task == "embed":  # the texts of a pair differ, those of a batch too
        for name in ("train", "dev"):
            rows = [{**EMBED[kind], "anchor": f"the film {i}", "positive": f"it was {i}"} for i in range(ROWS)]
            write_jsonl(folder / f"{name}.jsonl", rows)
    elif task == "rerank":
        for name in ("train", "dev"):
            row = {"query": "the film", "documents": ["it was good", "it was bad", "it"], "scores": [2.0, 0.5, -1.0]}
            write_jsonl(folder / f"{name}.jsonl", [row] * ROWS)
    elif task == "own":
        for name in ("train", "dev"):
            write_jsonl(folder / f"{name}.jsonl", [*OWN[kind]] * (ROWS // len(OWN[kind])))
    else:
        questions = [{"id": f"q{i}", "question": "was it", "answers": [ANSWER]} for i in range(ROWS)]
        text = json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": questions}]}]})
        for name in ("train", "dev"):
            (folder / f"{name}-{SQUAD_VERSIONS[task]}.json").write_text(text)
    return folder


def _write_glue(folder: Path, *, name: str) -> None:
    spec = glue.TASKS[name]
    values = spec.values or spec.labels or ("1.0", "2.5")
    columns = [column for column in (spec.text, spec.text_pair, spec.label) if column]
    for split in ("train", *spec.dev):
        texts = ["the film"] * 2 if spec.text_pair else [SINGLE]
        rows = [[*texts, values[i % len(values)]] for i in range(ROWS)]
        if name == "cola":  # its files have no header line
            lines = [f"gj04\t{label}\t\t{text}" for text, label in rows]
        else:
            lines = ["\t".join(row) for row in (columns, *rows)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
