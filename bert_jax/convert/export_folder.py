"""Export of any model to a HuggingFace folder, which is read back and compared before success is reported.

The folder is written under a temporary name next to `out` and renamed at the end, so it is never incomplete. One in a
bucket is uploaded when it is whole, config.json last.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.convert.assemble import name_architecture
from bert_jax.convert.cross_encoder import cross_encoder_fields
from bert_jax.convert.destination import Destination, destination
from bert_jax.convert.folder_config import config_json, own_fields
from bert_jax.convert.huggingface import WEIGHT_DTYPES, read_tensors, same_bits, to_tensors, write_tensors
from bert_jax.convert.loading import load_pretrained
from bert_jax.convert.model_card import example, model_card
from bert_jax.convert.pretrained import PretrainedModel
from bert_jax.convert.sentence_transformers import POOLINGS, EmbeddingSettings, write_sentence_transformers_files
from bert_jax.convert.tokenizer_files import write_tokenizer_files
from bert_jax.errors import UserError
from bert_jax.invocation import relative
from bert_jax.json_files import load_json
from bert_jax.kinds.base import id_fields
from bert_jax.model.architectures import architecture_of
from bert_jax.model.bilstm import BILSTM
from bert_jax.model.parts import apply_parts, to_device
from bert_jax.rows.layout import encoder_inputs
from bert_jax.types import InstanceRows

MAX_SHARD_BYTES = 5_000_000_000  # the default of transformers
# Between our float32 outputs and an independent float64 computation, relative to the largest output; MiniLM: 2.6e-7.
_TOLERANCE = 1e-4
_SAMPLE_A = "The committee asked whether the river had been measured at its source."
_SAMPLE_B = "Nobody could say, so 2 of them went up the valley (on foot) to look."


@dataclasses.dataclass(frozen=True)
class Exported:
    """A summary of the export. `largest_difference` is that between the outputs of the folder and of the model.

    `example` is Python that uses the folder: an import and an expression.
    """

    folder: Path | str
    architecture: str
    num_parameters: int
    num_tensors: int
    dtype: str
    largest_difference: float
    example: tuple[str, str]


def export_folder(
    source: PretrainedModel,
    *,
    out: str | Path,
    dtype: str = "",
    sentence_transformers: bool = False,
    pooling: str = "",
    embedding_size: int = 0,
    cross_encoder: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    report: Callable[[str], None] = print,
) -> Exported:
    """Export `source` to the new folder `out`, which may be in a bucket. The default of `dtype` is that of `source`.

    `pooling` is for `sentence_transformers`; its default is that of `source`, else the mean. So is `embedding_size`,
    the numbers of an embedding that are kept; 0: all.

    Raises:
      UserError: if `out` exists or cannot be written, HuggingFace has no such model, or the folder read back differs.
    """
    dtype = dtype or source.dtype
    if dtype not in WEIGHT_DTYPES:
        raise UserError(f"--dtype={dtype}: choose one of {', '.join(WEIGHT_DTYPES)}")
    if pooling not in ("", *POOLINGS):
        raise UserError(f"--pooling={pooling}: choose one of {', '.join(POOLINGS)}")
    embedding = _embedding(source, pooling=pooling) if sentence_transformers else None
    if embedding_size:
        if embedding is None:
            raise UserError(
                f"--embedding_size={embedding_size}: only --sentence_transformers has embeddings: type both"
            )
        size = source.model.hidden_size
        embedding = embedding.truncated(embedding_size, hidden_size=size, option="--embedding_size")
    if cross_encoder and embedding is not None:
        raise UserError("--cross_encoder and --sentence_transformers write different models: omit one")
    fields = cross_encoder_fields(source) if cross_encoder else {}
    source = _for_huggingface(source, report=report)
    source.require_tokenizer()  # raises before anything is written
    with destination(out, report=report) as target:
        tensors = to_tensors(source, dtype=dtype)
        _write(source, target.folder, tensors, target.name, dtype, max_shard_bytes, embedding, fields)
        report(f"wrote {len(tensors)} tensors, reading them back")
        difference = _compare(source, target.folder, tensors=tensors)
    return Exported(
        folder=target.final,
        architecture=source.architecture,
        num_parameters=sum(array.size for array in tensors.values()),
        num_tensors=len(tensors),
        dtype=dtype,
        largest_difference=difference,
        example=example(source, name=_loaded_as(target), pooling=_pooling(embedding)),
    )


def _loaded_as(target: Destination) -> str:
    """Return how Python names the folder: a path, or that of a bucket's copy in the current folder."""
    return str(relative(target.final)) if isinstance(target.final, Path) else target.name


def _for_huggingface(source: PretrainedModel, *, report: Callable[[str], None]) -> PretrainedModel:
    """Return the model as a HuggingFace class has it: one from left to right as a decoder, without untrained parts.

    Raises:
      UserError: if it has a BiLSTM, or reads from left to right and has a pooler: HuggingFace's classes pool [CLS].
    """
    if BILSTM in source.parts:
        raise UserError(
            f"{source.path}: has a BiLSTM between encoder and head, which no HuggingFace class has: export the encoder "
            f"alone with --drop={BILSTM},pooler,classifier,qa_outputs"
        )
    if source.model.attention_direction != "left_to_right":
        return source
    huggingface = architecture_of(source.model).huggingface
    if huggingface.class_for("LMHeadModel") not in huggingface.classes:
        return source  # has no decoder: writing its fields says so
    params = {part: source.params[part] for part in source.parts if part not in source.untrained}
    if "pooler" in params:
        raise UserError(
            f"{source.path}: model.attention_direction=left_to_right: its pooler reads the last token, that of "
            "HuggingFace's classes [CLS]; taggers, question answering, the language model and the bare encoder can be "
            "exported: type --drop=pooler,next_sentence,classifier"
        )
    declared = huggingface.class_for("LMHeadModel") if source.predicts_next else source.architecture
    name = name_architecture(tuple(params), model=source.model, declared=declared, path=source.path)
    left_out = ", ".join(part for part in source.parts if part not in params)
    report(f"left to right: exported as {name} with is_decoder=True" + (f", without {left_out}" if left_out else ""))
    return dataclasses.replace(source, params=params, architecture=name)


def _write(
    source: PretrainedModel,
    folder: Path,
    tensors: dict[str, np.ndarray],
    name: str,
    dtype: str,
    max_shard_bytes: int,
    embedding: EmbeddingSettings | None,
    fields: Mapping[str, Any],
) -> None:
    tokenizer = source.require_tokenizer()
    trained = source.longest_trained
    fields = {**fields, **own_fields(max_seq_length=trained, truncation=source.text_limits.get("truncation", ""))}
    config = config_json(
        source.model,
        huggingface_class=source.architecture,
        dtype=dtype,
        special_ids=tokenizer.special_ids,
        label_fields=_label_fields(source),
        other_fields=fields,
    )
    (folder / "config.json").write_text(config)
    has_token_types = architecture_of(source.model).huggingface.has_token_types
    longest = trained or source.max_length or source.model.max_position_embeddings
    write_tokenizer_files(tokenizer, folder, max_seq_length=longest, token_types=has_token_types)
    write_tensors(folder, tensors, max_shard_bytes=max_shard_bytes)
    card = model_card(source, name=name, dtype=dtype, pooling=_pooling(embedding))
    (folder / "README.md").write_text(card, encoding="utf-8")
    if embedding is not None:
        write_sentence_transformers_files(folder, model=source.model, settings=embedding)


def _pooling(embedding: EmbeddingSettings | None) -> str:
    return "+".join(embedding.poolings) if embedding is not None else ""


def _embedding(source: PretrainedModel, *, pooling: str) -> EmbeddingSettings:
    """Return the settings to write for sentence-transformers: those of `source` if it has them.

    Raises:
      UserError: if they need a module that is not written.
    """
    settings = source.embedding or EmbeddingSettings(normalize=True)
    if pooling:
        return dataclasses.replace(settings, poolings=(pooling,), layers=(), unsupported="")
    if settings.unsupported:
        raise UserError(
            f"{source.path}: its embeddings need the module {settings.unsupported}, which is not exported: type "
            "--pooling=mean for a model without it"
        )
    return settings


def _label_fields(source: PretrainedModel) -> dict[str, Any]:
    """Return the fields about labels. HuggingFace takes the classifier's size from them; without them it is two."""
    kind = source.output_kind
    return dict(source.label_fields) | (id_fields(source.labels) if kind is not None and kind.has_label_names else {})


def _compare(source: PretrainedModel, folder: Path, *, tensors: dict[str, np.ndarray]) -> float:
    """Read the folder back and compare it. Return the largest relative difference of outputs.

    Raises:
      UserError: if anything differs.
    """
    stored = read_tensors(folder)
    wrong = sorted(
        name
        for name in tensors.keys() | stored.keys()
        if name not in stored or not same_bits(stored[name], tensors[name])
    )
    reloaded = load_pretrained(folder)
    reloaded_tensors = to_tensors(reloaded, dtype=reloaded.dtype)
    wrong += sorted(name for name, array in tensors.items() if not same_bits(reloaded_tensors[name], array))
    for field, original, copy in (
        ("architecture", source.architecture, reloaded.architecture),
        ("config", source.model, dataclasses.replace(reloaded.model, **_compute_options(source))),
        ("vocabulary", source.require_tokenizer().fingerprint, reloaded.require_tokenizer().fingerprint),
        ("labels", source.labels, reloaded.labels),
    ):
        if original != copy:
            wrong.append(field)
    if wrong:
        raise UserError(
            f"the exported folder differs from what was written ({', '.join(wrong[:6])}): check the disk and export "
            "again"
        )
    difference = _output_difference(reloaded, folder, stored)
    if not difference < _TOLERANCE:
        raise UserError(
            f"the outputs of the exported model differ by {difference:.1e} from the original's: this is a bug, please "
            "report it"
        )
    return difference


def _compute_options(source: PretrainedModel) -> dict[str, Any]:
    """Return the fields that do not change the function computed. They are not exported."""
    model = source.model
    return {name: getattr(model, name) for name in ("dtype", "attention_implementation", "scan_layers", "remat")}


def _output_difference(reloaded: PretrainedModel, folder: Path, tensors: dict[str, np.ndarray]) -> float:
    tokenizer = reloaded.require_tokenizer()
    token_ids, first_length = tokenizer.special_ids.frame(*tokenizer.encode_batch([_SAMPLE_A, _SAMPLE_B]))
    huggingface = architecture_of(reloaded.model).huggingface
    length = min(reloaded.model.max_position_embeddings, huggingface.verified_length)
    ids = np.array(token_ids, np.int32)[:length]
    if not huggingface.has_token_types:
        ids = np.resize(ids, length)
    if reloaded.model.type_vocab_size == 1 or first_length > len(ids):
        first_length = len(ids)
    types = (np.arange(len(ids)) >= first_length).astype(np.int64)
    rows = InstanceRows(jnp.asarray(ids)[None], jnp.asarray([[[first_length, len(ids) - first_length]]]))
    positions = jnp.arange(len(ids))[None]
    kind = reloaded.output_kind
    options = {"model": reloaded.model, "classify_tokens": kind is not None and kind.per_token}
    compute = jax.jit(lambda params, inputs: apply_parts(params, inputs, positions=positions, **options))
    actual = compute(to_device(reloaded.params), encoder_inputs(rows))
    config = load_json(folder / "config.json", form=dict[str, Any])
    expected = huggingface.outputs(tensors, config=config, input_ids=ids, token_type_ids=types)
    differences = [
        float(np.abs(np.asarray(getattr(actual, name))[0] - values).max() / max(1.0, float(np.abs(values).max())))
        for name, values in expected.items()
    ]
    return max(differences)
