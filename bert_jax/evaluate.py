"""Evaluate a model on held-out text: `bert-jax evaluate --model=MODEL [--data=DIR]`; prints one JSON object.

`--task=minimal_pairs --model=MODEL --data=FILES` asks which sentence of each pair a model finds more likely;
`--task=squad_v2 --predictions=FILE --data=FILE` scores a predictions file of a task.
"""

import json
import sys

from bert_jax import cli, streams  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip

MODEL = flags.DEFINE_string(
    "model",
    "",
    "Required, except with --predictions. Model: a workdir, one of its checkpoints, a HuggingFace folder, or the "
    "prefix of a TF1 checkpoint.",
)
DATA = flags.DEFINE_string(
    "data",
    "",
    "Data set made by prepare (default: the model's training data set), a task's gold file, or minimal pairs: files of "
    "JSON lines, archives or globs.",
)
LENGTH = flags.DEFINE_integer("max_seq_length", 0, "Sequence length; default: that of the last phase.")
EXAMPLES = flags.DEFINE_integer("max_examples", 0, "Maximum number of held-out sequences; default: as in training.")
BATCH = flags.DEFINE_integer("batch_size", 0, "Sequences per batch; default: as in training.")
INIT_MISSING = flags.DEFINE_list("init_missing", [], "Parts to initialize randomly if the model lacks them.")
DROP = flags.DEFINE_list("drop", [], "Parts or tensors of the model to drop.")
TASK = flags.DEFINE_string("task", "", "Score a predictions file of this task; or minimal_pairs.")
PREDICTIONS = flags.DEFINE_string("predictions", "", "Predictions file for --task.")
NULL_ODDS = flags.DEFINE_string(
    "null_odds", "", "--task=squad_v2: file of no-answer scores (null_odds.json), for the best thresholds."
)
SCORING = flags.DEFINE_string(
    "scoring",
    "",
    "--task=minimal_pairs, masked language models: word_l2r (default) masks each token and the rest of its word, token "
    "each token only.",
)


def main() -> None:
    """Print the metrics as JSON."""
    from bert_jax.errors import UserError

    streams.require_output(remedy="redirect it to a file")
    conclusion = ""
    if SCORING.value and TASK.value != "minimal_pairs":
        raise UserError(f"--scoring={SCORING.value}: only --task=minimal_pairs has it: omit the flag")
    if TASK.value == "minimal_pairs" and MODEL.value:
        from bert_jax.prediction.minimal_pairs import evaluate_minimal_pairs

        result = evaluate_minimal_pairs(
            MODEL.value,
            data=DATA.value,
            scoring=SCORING.value,
            init_missing=INIT_MISSING.value,
            drop=DROP.value,
            report=lambda text: print(text, file=sys.stderr),
        )
    elif TASK.value and TASK.value != "minimal_pairs":
        from bert_jax.progress import clock
        from bert_jax.tasks.scoring import score_predictions

        with clock(f"scoring {PREDICTIONS.value}", report=lambda text: print(text, file=sys.stderr)):
            result = score_predictions(
                task=TASK.value, predictions=PREDICTIONS.value, data=DATA.value, null_odds=NULL_ODDS.value
            )
    elif MODEL.value:
        from bert_jax.pretrain.evaluate_pretrained import evaluate_pretrained
        from bert_jax.pretrain.evaluation import verdict

        result = evaluate_pretrained(
            MODEL.value,
            data=DATA.value,
            max_seq_length=LENGTH.value,
            max_examples=EXAMPLES.value,
            batch_size=BATCH.value,
            init_missing=INIT_MISSING.value,
            drop=DROP.value,
            report=lambda text: print(text, file=sys.stderr),
        )
        conclusion = verdict(result)
    else:
        raise UserError(
            "--model is missing: name a workdir, a checkpoint, a HuggingFace folder or the prefix of a TF1 checkpoint"
        )
    if not sys.stdout.isatty():
        print(json.dumps(result))
        return
    rounded = {name: round(value, 6) if isinstance(value, float) else value for name, value in result.items()}
    print(json.dumps(rounded, indent=2))
    if conclusion:
        print(conclusion, file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, buckets=("model", "data"))
