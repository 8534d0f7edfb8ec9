"""Evaluate a model on held-out text: `python -m bert_jax.evaluate --model=SOURCE [--data=DIR]`; one JSON object.

With `--task=squad_v2 --predictions=FILE --data=FILE` it scores a predictions file of a task instead.
"""

import json
import sys

from bert_jax import cli  # first: it quiets the libraries that the next imports load

from absl import flags  # isort: skip

MODEL = flags.DEFINE_string("model", "", "Model SOURCE: a workdir, a checkpoint, a HuggingFace folder, a TF1 prefix.")
DATA = flags.DEFINE_string("data", "", "Data set made by prepare (default: the one trained on), or a task's gold file.")
LENGTH = flags.DEFINE_integer("max_seq_length", 0, "Length of the rows; default: that of the last phase.")
EXAMPLES = flags.DEFINE_integer("max_examples", 0, "At most so many held-out rows; default: as in training.")
BATCH = flags.DEFINE_integer("batch_size", 0, "Rows a batch; default: as in training.")
TASK = flags.DEFINE_string("task", "", "Score a predictions file of this task.")
PREDICTIONS = flags.DEFINE_string("predictions", "", "The predictions file of --task.")


def main() -> None:
    """Print the figures."""
    from bert_jax.errors import UserError

    if TASK.value:
        from bert_jax.tasks.scoring import score_predictions

        result = score_predictions(task=TASK.value, predictions=PREDICTIONS.value, data=DATA.value)
    elif MODEL.value:
        from bert_jax.pretrain.evaluate_pretrained import evaluate_pretrained

        result = evaluate_pretrained(
            MODEL.value,
            data=DATA.value,
            max_seq_length=LENGTH.value,
            max_examples=EXAMPLES.value,
            batch_size=BATCH.value,
            report=lambda text: print(text, file=sys.stderr),
        )
    else:
        raise UserError("--model is missing: name a workdir, a checkpoint, a HuggingFace folder or a TF1 prefix")
    print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
