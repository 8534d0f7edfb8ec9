"""Write the README.md of an exported folder: what the model is, what it learned from, how, and how well it does."""

from collections.abc import Mapping
from typing import Any

from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.files import read_log
from bert_jax.model.architectures import architecture_of
from bert_jax.model.parameter_names import flatten

# Pipelines of the classes that were not fine-tuned, without the architecture's name.
_PIPELINES = {"ForPreTraining": "fill-mask", "ForMaskedLM": "fill-mask", "Model": "feature-extraction"}


def model_card(source: PretrainedModel, *, name: str, dtype: str, pooling: str = "") -> str:
    """Return the card of `source` as exported in `dtype`; `pooling` is set for sentence-transformers."""
    sections = [_front_matter(source, pooling=pooling), f"# {name}", _shape(source, dtype=dtype)]
    if source.record:
        sections += [_training(source.record), _metrics(source)]
    else:
        sections.append(f"Converted from a {_ORIGINS[source.kind]}; nothing is known here of its training.")
    sections += [_vocabulary(source), _use(source, name=name, pooling=pooling)]
    return "\n\n".join(section for section in sections if section) + "\n"


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


def _training(record: Mapping[str, Any]) -> str:
    config = record["config"]
    train, optimizer, masking, data = (config.get(group, {}) for group in ("train", "optimizer", "masking", "data"))
    rows: dict[str, Any] = {
        "steps": f"{record['step']:,} of {train.get('num_steps', record['step']):,}",
        "recipe": config.get("recipe"),
        "objective": data.get("objective"),
        "batch": train.get("batch_size"),
        "sequence lengths": ", ".join(
            f"{phase['max_seq_length']} for {phase['fraction']:.0%} of the steps" for phase in train.get("phases", ())
        ),
        "optimizer": optimizer.get("name"),
        "learning rate": optimizer.get("learning_rate"),
        "warm-up steps": optimizer.get("warmup_steps"),
        "weight decay": optimizer.get("weight_decay"),
        "masking": f"{masking['rate']:.0%}, {masking['mask_share']:.0%} [MASK], {masking['random_share']:.0%} random, "
        f"{masking['same_share']:.0%} unchanged" + (", whole words" if masking.get("whole_word") else "")
        if masking
        else None,
        "seed": config.get("seed"),
        "text": data.get("input") or data.get("directory"),
    }
    rows |= {f"fingerprint of {name}": f"`{value}`" for name, value in record.get("fingerprints", {}).items()}
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value not in (None, "")]
    note = ""
    if data.get("objective") == "mlm":
        note = "\n\nThe pooler and the next-sentence head were not trained (objective `mlm`)."
    return "\n".join(["## Training", "", "| | |", "| --- | --- |", *lines]) + note


def _metrics(source: PretrainedModel) -> str:
    """Return the newest evaluation up to the checkpoint's step, from the workdir's metrics.jsonl."""
    workdir = source.path if (source.path / "metrics.jsonl").exists() else source.path.parent.parent
    measured: dict[str, float] = {}
    step = source.record["step"]
    for split, figures in source.record.get("metrics", {}).items():  # a fine-tuned checkpoint carries its own
        measured |= {f"{split}/{name}": value for name, value in figures.items() if isinstance(value, (int, float))}
    for line in read_log(workdir / "metrics.jsonl"):
        evaluated = {key: value for key, value in line.items() if key.startswith("eval/")}
        if evaluated and line.get("step", 0) <= source.record["step"]:
            measured, step = evaluated, line["step"]
    if not measured:
        return ""
    rows = [f"| {name.removeprefix('eval/')} | {value:.4f} |" for name, value in sorted(measured.items())]
    head = ["## Evaluation", "", f"On held-out data, at step {step:,}:", "", "| figure | value |", "| --- | --- |"]
    return "\n".join(head + rows)


def _vocabulary(source: PretrainedModel) -> str:
    tokenizer = source.require_tokenizer()
    casing = "uncased" if tokenizer.do_lower_case else "cased"
    return (
        "## Vocabulary\n\n"
        f"WordPiece, {tokenizer.vocab_size:,} pieces, {casing}, fingerprint `{tokenizer.fingerprint}`. Words of up to "
        "200 characters are cut into pieces, as in the original. The `tokenizers` library differs from the original on "
        "private-use characters and some CJK code points, and takes a literal "
        '"[MASK]" in raw text for the mask.'
    )


def _use(source: PretrainedModel, *, name: str, pooling: str) -> str:
    kind = source.output_kind
    if pooling:
        load = f"SentenceTransformer('{name}')"
        code = f"from sentence_transformers import SentenceTransformer\n\n{load}.encode(['A sentence.'])"
    elif (task := _pipeline_tag(source)) and (kind is None or kind.in_transformers_pipeline):
        text = "Paris is the [MASK] of France." if task == "fill-mask" else "A sentence."
        code = f"from transformers import pipeline\n\npipeline('{task}', model='{name}')('{text}')"
    else:
        code = f"from transformers import {source.architecture}\n\n{source.architecture}.from_pretrained('{name}')"
    return f"## Use\n\n```python\n{code}\n```"
