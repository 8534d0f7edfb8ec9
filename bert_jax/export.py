"""Export a model to a HuggingFace folder: `bert-jax export --checkpoint=MODEL --out=DIR`.

MODEL is a workdir, one of its checkpoints, a HuggingFace folder, or the prefix of a TF1 checkpoint. The exported folder
is read back and compared before success is reported.
"""

from importlib.util import find_spec
from pathlib import Path

from bert_jax import cli, invocation  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    "",
    "Required. Model: a workdir, one of its checkpoints, a HuggingFace folder, or the prefix of a TF1 checkpoint.",
)
OUT = flags.DEFINE_string(
    "out", "", "Required. Folder to write, here or gs://BUCKET/FOLDER; it must be empty or not exist yet."
)
DTYPE = flags.DEFINE_string("dtype", "", "float32, float16 or bfloat16; default: that of the model.")
SENTENCE_TRANSFORMERS = flags.DEFINE_bool(
    "sentence_transformers", False, "Also write the files of sentence-transformers."
)
POOLING = flags.DEFINE_string(
    "pooling",
    "",
    "Pooling for --sentence_transformers: mean, cls, max, mean_sqrt_len_tokens, weightedmean or lasttoken. Default: "
    "that of the model, else mean.",
)
EMBEDDING_SIZE = flags.DEFINE_integer(
    "embedding_size",
    0,
    "For --sentence_transformers: numbers of an embedding to keep (Matryoshka); 0: all.",
    0,
)
CROSS_ENCODER = flags.DEFINE_bool(
    "cross_encoder", False, "Also write what CrossEncoder of sentence-transformers reads, for a model of pairs."
)
INIT_MISSING = flags.DEFINE_list(
    "init_missing", [], "Parts to initialize randomly if the model lacks them: masked_lm,pooler."
)
DROP = flags.DEFINE_list("drop", [], "Parts or tensors of the model to drop.")
EXTEND_VOCAB = flags.DEFINE_string("extend_vocab", "", "File of words to add to the vocabulary, one per line.")
TILE_TO = flags.DEFINE_string(
    "tile_to", "", "Preset of a larger model to initialize from this one: its weights are repeated (modernbert-large)."
)
MAX_SHARD_MB = flags.DEFINE_integer("max_shard_mb", 5000, "Maximum size of a weights file; larger models are split.", 1)


def main() -> int:
    """Read the flags and export."""
    from bert_jax.convert.export_folder import export_folder
    from bert_jax.convert.loading import load_pretrained
    from bert_jax.convert.tiling import tile_to
    from bert_jax.convert.vocabulary_extension import extend_source, read_words
    from bert_jax.errors import UserError

    for name, flag in (("checkpoint", CHECKPOINT), ("out", OUT)):
        if not flag.value:
            raise UserError(f"--{name} is missing: type --checkpoint=MODEL --out=DIR")
    source = load_pretrained(CHECKPOINT.value, init_missing=INIT_MISSING.value, drop=DROP.value)
    if EXTEND_VOCAB.value:
        source = extend_source(source, words=read_words(EXTEND_VOCAB.value))
    if TILE_TO.value:
        source = tile_to(source, preset=TILE_TO.value)
    result = export_folder(
        source,
        out=OUT.value,
        dtype=DTYPE.value,
        sentence_transformers=SENTENCE_TRANSFORMERS.value,
        pooling=POOLING.value,
        embedding_size=EMBEDDING_SIZE.value,
        cross_encoder=CROSS_ENCODER.value,
        max_shard_bytes=MAX_SHARD_MB.value * 1_000_000,
    )
    random = f"; {source.randomness}" if source.random else ""
    if trained := source.longest_trained:
        print(f"trained on sequences of up to {trained} tokens; longer ones are possible and were never seen")
    print(
        f"exported to {result.folder}: {result.architecture}, {result.num_parameters:,} parameters in {result.dtype}; "
        f"read back: {result.num_tensors} tensors equal bit for bit, outputs within {result.largest_difference:.1e} of "
        f"a second computation{random}"
    )
    imported, expression = result.example
    copy = [] if isinstance(result.folder, Path) else [f"gcloud storage cp --recursive {result.folder} ."]
    library = imported.split()[1]
    install = (
        [] if find_spec(library) else [f"{invocation.interpreter()} -m pip install torch {library.replace('_', '-')}"]
    )
    print(invocation.next_steps(*copy, *install, invocation.python(f"{imported}; print({expression})")))
    if source.random:
        print(f"warning: {source.randomness}")
    return 0


if __name__ == "__main__":
    cli.run(main, buckets=("checkpoint", "out"))
