"""Fill masks, embed, classify, tag and answer: JSON lines in, JSON lines out.

    python -m bert_jax.predict --model=MODEL --task=fill_mask --input=FILE

    fill_mask  {"text": "Paris is the [MASK] of France."}         nsp, pair  {"text_a": "...", "text_b": "..."}
    embed, features, classify, ner  {"text": "..."}               ner also   {"words": ["...", "..."]}
    qa  {"question": "...", "context": "..."}                     choice    {"text_a": "...", "choices": ["..."]}

`--input=-` reads standard input. A field `id` is copied to the output.
"""

import sys

from bert_jax import cli  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip

MODEL = flags.DEFINE_string(
    "model",
    "",
    "Model: a workdir, one of its checkpoints, a HuggingFace folder, or the prefix of a TF1 checkpoint.",
)
TASK = flags.DEFINE_string("task", "", "fill_mask, nsp, features, embed, classify, pair, choice, qa or ner.")
INPUT = flags.DEFINE_string("input", "-", "File of JSON lines; - is standard input.")
OUTPUT = flags.DEFINE_string("output", "-", "File for the predictions; - is standard output.")
TOP_K = flags.DEFINE_integer("top_k", 5, "fill_mask: predictions per mask.")
LAYERS = flags.DEFINE_list(
    "layers",
    ["last"],
    "features: embeddings, second_to_last, last, sum_last_four, concat_last_four, sum_all, or numbers.",
)
POOLING = flags.DEFINE_string("pooling", "mean", "embed: mean or cls.")
NORMALIZE = flags.DEFINE_bool("normalize", True, "embed: normalize to unit length.")
NULL_THRESHOLD = flags.DEFINE_float(
    "null_threshold", None, "qa: predict no answer if null_odds exceeds this (SQuAD 2.0)."
)
TRUNCATION = flags.DEFINE_string(
    "truncation",
    "",
    "classify, pair: what is read of a longer text: head, head_tail or (classify) windows, whose outputs are averaged; "
    "default: as in fine-tuning.",
)
LENGTH = flags.DEFINE_integer("max_seq_length", 0, "classify, pair: tokens per sequence; default: the model's limit.")
INIT_MISSING = flags.DEFINE_list("init_missing", [], "Parts to initialize randomly if the model lacks them.")
DROP = flags.DEFINE_list("drop", [], "Parts or tensors of the model to drop.")


def main() -> int:
    """Read the flags and predict."""
    from bert_jax.errors import UserError
    from bert_jax.prediction.json_lines import predict_lines
    from bert_jax.prediction.model import TASKS, load

    if not MODEL.value:
        raise UserError(
            "--model is missing: name a workdir, a checkpoint, a HuggingFace folder or the prefix of a TF1 checkpoint"
        )
    if TASK.value not in TASKS:
        raise UserError(f"--task={TASK.value}: choose one of {', '.join(TASKS)}")
    reading = {"truncation": TRUNCATION.value, "max_length": LENGTH.value}
    options = {
        "classify": reading,
        "pair": reading,
        "fill_mask": {"top_k": TOP_K.value},
        "features": {"layers": tuple(LAYERS.value)},
        "embed": {"pooling": POOLING.value, "normalize": NORMALIZE.value},
        "qa": {"null_threshold": NULL_THRESHOLD.value},
    }.get(TASK.value, {})
    model = load(
        MODEL.value,
        init_missing=INIT_MISSING.value,
        drop=DROP.value,
        report=lambda line: print(line, file=sys.stderr),  # standard output is for the predictions
    )
    predict_lines(model, task=TASK.value, input=INPUT.value, output=OUTPUT.value, options=options)
    return 0


if __name__ == "__main__":
    cli.run(main)
