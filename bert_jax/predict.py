"""Fill masks, embed, classify, tag and answer: JSON lines in, JSON lines out.

    bert-jax predict --model=MODEL --task=fill_mask --text='Paris is the [MASK] of France.'
    bert-jax predict --model=MODEL --task=fill_mask --input=FILE

    fill_mask                  {"text": "Paris is the [MASK] of France."}
    embed, features, classify  {"text": "..."}
    tag                        {"text": "..."} or {"words": ["...", "..."]}
    nsp, pair                  {"text_a": "...", "text_b": "..."}
    answer                     {"question": "...", "context": "..."}
    choice                     {"text_a": "...", "choices": ["...", "..."]}

A .csv or .tsv file has a column per field; columns are also found by the names that they had in fine-tuning.
Where a row has one text, a line may be that text itself. Without `--input`, rows come from `--text`, once per field
(`--text=QUESTION --text=CONTEXT`), from a pipe, or from a prompt on a terminal. A field `id` is copied to the output.
The exit status is 1 if every row failed.
"""

import sys

from bert_jax import cli  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip

MODEL = flags.DEFINE_string(
    "model",
    "",
    "Required. Model: a workdir, one of its checkpoints, a HuggingFace folder, or the prefix of a TF1 checkpoint.",
)
TASK = flags.DEFINE_string(
    "task",
    "",
    "fill_mask, nsp, features, embed, classify, pair, choice, answer or tag; default: what the model was trained for, "
    "where that is one of them.",
)
TEXT = flags.DEFINE_multi_string("text", [], "Text of a row; given once per field of a row.")
INPUT = flags.DEFINE_string(
    "input", "-", "File of JSON lines, of texts one per line, or a .csv or .tsv with a header; - is standard input."
)
OUTPUT = flags.DEFINE_string("output", "-", "File for the predictions; - is standard output.")
TOP_K = flags.DEFINE_integer("top_k", 5, "fill_mask: predictions per mask.")
LAYERS = flags.DEFINE_list(
    "layers",
    ["last"],
    "features: embeddings, second_to_last, last, sum_last_four, concat_last_four, sum_all, or numbers.",
)
POOLING = flags.DEFINE_string(
    "pooling",
    "",
    "embed: mean, cls, max, mean_sqrt_len_tokens, weightedmean or lasttoken; several joined by +. Default: that of a "
    "sentence-transformers model, else mean.",
)
NORMALIZE = flags.DEFINE_bool(
    "normalize",
    None,
    "embed: normalize to unit length. Default: as a sentence-transformers model does, else true.",
)
PROMPT = flags.DEFINE_string(
    "prompt",
    "",
    "embed: name of the model's prompt to put before texts, for example query. Default: its default prompt.",
)
EMBEDDING_SIZE = flags.DEFINE_integer(
    "embedding_size", 0, "embed: numbers of an embedding to keep (Matryoshka); 0: all.", 0
)
NULL_THRESHOLD = flags.DEFINE_float(
    "null_threshold", None, "answer: predict no answer if null_odds exceeds this (SQuAD 2.0)."
)
TRUNCATION = flags.DEFINE_string(
    "truncation",
    "",
    "classify, pair: how long texts are truncated: head, head_tail or (classify) windows, whose outputs are averaged; "
    "default: as in fine-tuning.",
)
LENGTH = flags.DEFINE_integer(
    "max_seq_length", 0, "classify, pair: tokens per sequence; default: as in fine-tuning, else the model's limit."
)
INIT_MISSING = flags.DEFINE_list("init_missing", [], "Parts to initialize randomly if the model lacks them.")
DROP = flags.DEFINE_list("drop", [], "Parts or tensors of the model to drop.")


def main() -> int:
    """Read the flags and predict."""
    from bert_jax.errors import UserError, choose_one
    from bert_jax.prediction.json_lines import check_output, predict_lines
    from bert_jax.prediction.model import TASKS, load, present_name

    if not MODEL.value:
        raise UserError(
            "--model is missing: name a workdir, a checkpoint, a HuggingFace folder or the prefix of a TF1 checkpoint"
        )
    task = present_name(TASK.value)
    if task and task not in TASKS:
        raise UserError(f"--task={TASK.value}: {choose_one(task, TASKS)}")
    check_output(OUTPUT.value)
    model = load(
        MODEL.value,
        init_missing=INIT_MISSING.value,
        drop=DROP.value,
        report=lambda line: print(line, file=sys.stderr),  # standard output is for the predictions
    )
    if not task:
        task = model.usual_task()
        if not task:
            raise UserError(f"--task is missing: choose one of {', '.join(TASKS)}")
        print(f"task: {task} (--task=TASK chooses another)", file=sys.stderr)
    reading = {"truncation": TRUNCATION.value, "max_length": LENGTH.value}
    options = {
        "classify": reading,
        "pair": reading,
        "fill_mask": {"top_k": TOP_K.value},
        "features": {"layers": tuple(LAYERS.value)},
        "embed": {
            "pooling": POOLING.value,
            "normalize": NORMALIZE.value,
            "prompt": PROMPT.value,
            "size": EMBEDDING_SIZE.value,
        },
        "answer": {"null_threshold": NULL_THRESHOLD.value},
    }.get(task, {})
    if task == "embed" and model.source.embedding is not None:
        origin = "the run" if model.source.kind == "workdir" else "sentence-transformers"
        print(f"settings of {origin}: {model.source.embedding.describe()}", file=sys.stderr)
    counts = predict_lines(model, task=task, input=INPUT.value, output=OUTPUT.value, options=options, texts=TEXT.value)
    if model.source.random:
        print(f"WARNING: {model.source.randomness}", file=sys.stderr)
    return 1 if counts.all_failed else 0


if __name__ == "__main__":
    cli.run(main, buckets=("model",))
