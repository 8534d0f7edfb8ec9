"""The model card (README.md) of an exported folder: model, training, evaluation, vocabulary and use."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.data.tokenization import WordPieceTokenizer
from bert_jax.data.vocabulary import MAX_INPUT_CHARS_PER_WORD
from bert_jax.json_files import read_log
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import flatten

# The pipelines of classes that are not fine-tuned, by their names without the architecture.
_PIPELINES = {
    "ForPreTraining": "fill-mask",
    "ForMaskedLM": "fill-mask",
    "LMHeadModel": "text-generation",
    "Model": "feature-extraction",
}


def model_card(source: PretrainedModel, *, name: str, dtype: str, pooling: str = "") -> str:
    """Return the card of a model exported in `dtype`. `pooling` is set for sentence-transformers."""
    sections = [_front_matter(source, pooling=pooling), f"# {name}", _shape(source, dtype=dtype)]
    if source.record:
        untrained = [part for part in source.untrained if part in source.parts]
        sections += [_training(source.record, untrained=untrained), _metrics(source)]
    else:
        sections.append(f"Converted from a {_ORIGINS[source.kind]}. Its training is not recorded there.")
    if source.random:
        sections.append(
            f"**Not trained:** these parts were {source.randomness}. Fine-tune the model before you use them."
        )
    sections += [_vocabulary(source), _use(source, name=name, pooling=pooling)]
    return "\n\n".join(section for section in sections if section) + "\n"


_READ = {"head": "start", "head_tail": "start and the end", "windows": "whole, in windows"}
_ORIGINS = {"huggingface": "HuggingFace folder", "tf1": "TF1 checkpoint", "workdir": "checkpoint of bert_jax"}


def _front_matter(source: PretrainedModel, *, pooling: str) -> str:
    config = source.record.get("config", {})
    language = config.get("data", {}).get("language", "")
    task = "sentence-similarity" if pooling else _pipeline_tag(source)
    lines = ["---", f"library_name: {'sentence-transformers' if pooling else 'transformers'}"]
    lines += [f"language: {language}"] if language else []
    lines += [f"pipeline_tag: {task}"] if task else []
    return "\n".join([*lines, "tags:", f"- {source.model.architecture}", "- bert_jax", "---"])


def _pipeline(source: PretrainedModel) -> str:
    return next((tag for ending, tag in _PIPELINES.items() if source.architecture.endswith(ending)), "")


def _pipeline_tag(source: PretrainedModel) -> str:
    if source.output_kind is not None:
        return source.output_kind.pipeline_tag
    return next((tag for name, tag in _PIPELINES.items() if source.architecture.endswith(name)), "")


def _shape(source: PretrainedModel, *, dtype: str) -> str:
    model, architecture = source.model, architecture_of(source.model)
    count = sum(array.size for array in flatten(source.params).values())
    return (
        f"A {architecture.title} ({architecture.citation}) as `{source.architecture}`: {model.num_hidden_layers} "
        f"layers, hidden size {model.hidden_size}, {model.num_attention_heads} heads, "
        f"{model.max_position_embeddings} positions, {count:,} parameters in {dtype}, "
        f"activation `{model.hidden_act}`. Exported by bert_jax."
    )


def _training(record: Mapping[str, Any], *, untrained: Sequence[str]) -> str:
    config = record["config"]
    train, optimizer, masking, data = (config.get(group, {}) for group in ("train", "optimizer", "masking", "data"))
    rows: dict[str, Any] = {
        "steps": f"{record['step']:,} of {train.get('num_steps', record['step']):,}",
        "recipe": config.get("recipe"),
        "objective": data.get("objective"),
        "trained": train.get("objective") if train.get("objective") != "auto" else None,
        "batch": train.get("batch_size"),
        "sequence length": _cut(data),
        "sequence lengths": ", ".join(
            f"{phase['max_seq_length']} for {phase['fraction']:.0%} of the steps" for phase in train.get("phases", ())
        ),
        "optimizer": _optimizer(config),
        "learning rate": optimizer.get("learning_rate"),
        "warmup steps": optimizer.get("warmup_steps"),
        "weight decay": optimizer.get("weight_decay"),
        "masking": f"{masking['rate']:.0%}, {masking['mask_share']:.0%} [MASK], {masking['random_share']:.0%} random, "
        f"{masking['same_share']:.0%} unchanged" + (", whole words" if masking.get("whole_word") else "")
        if masking
        else None,
        "seed": config.get("seed"),
        "continued from": _continued(record),
        "distilled from": _distilled(record),
        "text": _public(data.get("directory") or data.get("input")),  # a data set replaces the corpus of a config
    }
    rows |= {f"fingerprint of {name}": f"`{value}`" for name, value in record.get("fingerprints", {}).items()}
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value not in (None, "")]
    note = ""
    if untrained:
        note = f"\n\nNot trained, because no loss reached it: {', '.join(untrained)}."
    return "\n".join(["## Training", "", "| | |", "| --- | --- |", *lines]) + note


def _cut(data: Mapping[str, Any]) -> str:
    """Return the length of fine-tuning, and what was read of longer texts."""
    length, truncation = data.get("max_seq_length"), data.get("truncation", "head")
    return f"{length}, of longer texts the {_READ.get(truncation, truncation)}" if length else ""


def _public(path: str | None) -> str:
    """Return the end of a local path, for a card that others read: the folders of a machine are nobody's business."""
    return ", ".join(item.rstrip("/").rpartition("/")[2] for item in (path or "").split(","))


def _optimizer(config: Mapping[str, Any]) -> str | None:
    """Return the optimizer's name after `auto` is resolved (`training/optimizers.py`)."""
    name = config.get("optimizer", {}).get("name")
    return name if name != "auto" else "bert_adam" if config.get("recipe") == "original" else "adamw"


def _continued(record: Mapping[str, Any]) -> str:
    origin = record.get("origin") or {}
    return f"{origin['continued_from']} at step {origin['step']:,}" if origin.get("continued_from") else ""


def _distilled(record: Mapping[str, Any]) -> str:
    """Return the teacher, and what of the model its relations do not reach."""
    teacher, options = record.get("teacher"), record.get("config", {}).get("distill")
    if not teacher or not options:
        return ""
    weight = options.get("pretraining_weight")
    layer = f"{_public(teacher['path'])} (checksum `{teacher['checksum']}`): relations of its layer {teacher['layer']}"
    also = f", and the pre-training loss times {weight:g}" if weight else " alone: fine-tune its last layer and heads"
    return layer + also


def _metrics(source: PretrainedModel) -> str:
    """Return the last evaluation up to the checkpoint's step, from the workdir's metrics.jsonl."""
    workdir = source.path if (source.path / "metrics.jsonl").exists() else source.path.parent.parent
    metrics: dict[str, float] = {}
    step = source.record["step"]
    for split, values in source.record.get("metrics", {}).items():  # a fine-tuned checkpoint contains its metrics
        metrics |= {f"{split}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
    for line in read_log(workdir / "metrics.jsonl"):
        evaluation: dict[str, float] = {
            key: value for key, value in line.items() if key.startswith("eval/") and isinstance(value, float | int)
        }
        if evaluation and line.get("step", math.inf) <= source.record["step"]:
            metrics, step = evaluation, line["step"]
    if not metrics:
        return ""
    rows = [f"| {name.removeprefix('eval/')} | {value:.4f} |" for name, value in sorted(metrics.items())]
    head = ["## Evaluation", "", f"On held-out data, at step {step:,}:", "", "| metric | value |", "| --- | --- |"]
    return "\n".join(head + rows)


def _vocabulary(source: PretrainedModel) -> str:
    tokenizer = source.require_tokenizer()
    casing = "uncased" if tokenizer.do_lower_case else "cased"
    size = f"{tokenizer.kind}, {tokenizer.vocab_size:,} tokens, {casing}, fingerprint `{tokenizer.fingerprint}`."
    if not isinstance(tokenizer, WordPieceTokenizer):
        return f"## Vocabulary\n\n{size}"
    vocabulary = tokenizer.vocabulary
    limit = vocabulary.max_input_chars_per_word
    original = ", as in the original" if limit == MAX_INPUT_CHARS_PER_WORD else ""
    added = f" {len(vocabulary.added):,} added tokens are kept whole." if vocabulary.added else ""
    return (
        "## Vocabulary\n\n"
        f"{size}{added} Words of more than {limit} characters become `[UNK]`{original}. The `tokenizers` library "
        "differs from the original on private-use characters and some CJK code points, and reads a literal "
        '"[MASK]" in raw text as the mask token.'
    )


def _use(source: PretrainedModel, *, name: str, pooling: str) -> str:
    code = "\n\n".join(example(source, name=name, pooling=pooling))
    return f"## Use\n\n```python\n{code}\n```"


def example(source: PretrainedModel, *, name: str, pooling: str = "") -> tuple[str, str]:
    """Return Python that uses the exported folder `name`: an import and an expression."""
    kind = source.output_kind
    if pooling:
        load = f"SentenceTransformer({name!r})"
        return "from sentence_transformers import SentenceTransformer", f"{load}.encode(['A sentence.'])"
    if (task := _pipeline_tag(source)) and (kind is None or kind.in_transformers_pipeline):
        tokenizer = source.require_tokenizer()
        mask = tokenizer.pieces[tokenizer.mask_id]
        text = f"Paris is the {mask} of France." if task == "fill-mask" else "A sentence."
        return "from transformers import pipeline", f"pipeline('{task}', model={name!r})('{text}')"
    return f"from transformers import {source.architecture}", f"{source.architecture}.from_pretrained({name!r})"
