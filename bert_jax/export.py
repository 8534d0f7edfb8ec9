"""Export a model for the HuggingFace ecosystem: `python -m bert_jax.export --checkpoint=SOURCE --out=DIR`.

SOURCE is a workdir or checkpoint of ours, a HuggingFace folder, or the prefix of a TF1 checkpoint. The folder is read
back and compared before it is called done.
"""

from bert_jax import cli  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip

CHECKPOINT = flags.DEFINE_string("checkpoint", "", "SOURCE: workdir, checkpoint, HuggingFace folder or TF1 prefix.")
OUT = flags.DEFINE_string("out", "", "Folder to write; it must not exist yet, or be empty.")
DTYPE = flags.DEFINE_string("dtype", "", "float32, float16 or bfloat16; by default that of the SOURCE.")
SENTENCE_TRANSFORMERS = flags.DEFINE_bool("sentence_transformers", False, "Add the files of sentence-transformers.")
POOLING = flags.DEFINE_string("pooling", "mean", "Of --sentence_transformers: mean or cls.")
INIT_MISSING = flags.DEFINE_list(
    "init_missing", [], "Parts to draw anew where the SOURCE lacks them: masked_lm,pooler."
)
DROP = flags.DEFINE_list("drop", [], "Parts or tensors of the SOURCE to leave out.")
EXTEND_VOCAB = flags.DEFINE_string("extend_vocab", "", "File with a new word a line, to add to the vocabulary.")
MAX_SHARD_MB = flags.DEFINE_integer("max_shard_mb", 5000, "Begin another file where the weights exceed this.", 1)


def main() -> int:
    """Read the flags and call the one function."""
    from bert_jax.convert.export_folder import export_folder
    from bert_jax.convert.loading import load_pretrained
    from bert_jax.convert.vocabulary_extension import extend_source, read_words
    from bert_jax.errors import UserError

    for name, flag in (("checkpoint", CHECKPOINT), ("out", OUT)):
        if not flag.value:
            raise UserError(f"--{name} is missing: type --checkpoint=SOURCE --out=DIR")
    source = load_pretrained(CHECKPOINT.value, init_missing=INIT_MISSING.value, drop=DROP.value)
    if EXTEND_VOCAB.value:
        source = extend_source(source, words=read_words(EXTEND_VOCAB.value))
    done = export_folder(
        source,
        out=OUT.value,
        dtype=DTYPE.value,
        sentence_transformers=SENTENCE_TRANSFORMERS.value,
        pooling=POOLING.value,
        max_shard_bytes=MAX_SHARD_MB.value * 1_000_000,
    )
    print(
        f"exported to {done.folder}: {done.architecture}, {done.num_parameters:,} parameters in {done.dtype}; read "
        f"back: "
        f"{done.num_tensors} tensors equal bit for bit, outputs within {done.largest_difference:.1e} of a second "
        f"computation"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
