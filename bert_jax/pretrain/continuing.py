"""Continued pre-training from a model (`--init`): its shape, vocabulary and parameters; perplexity before and after."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from bert_jax.config import Config, validate
from bert_jax.convert.loading import PretrainedModel, model_of
from bert_jax.data.accents import with_accents
from bert_jax.data.tokenization import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.json_files import read_log

VOCABULARY = "source_vocab"  # in the workdir


def adopt_source(
    config: Config, *, source: PretrainedModel, workdir: str | Path, report: Callable[[str], None]
) -> Config:
    """Return `config` with the shape of the `--init` model and, unless the config names one, the model's vocabulary.

    The config still decides how to compute (dtype, scan_layers, dropout). `save_vocabulary_of` writes the vocabulary
    that the returned config names, WORKDIR/source_vocab.

    Raises:
      UserError: if the config does not fit the shape (sequences longer than the position table), or names another
        vocabulary.
    """
    model = model_of(source, model=config.model)
    data = config.data
    tokenizer = source.require_tokenizer()
    if data.vocab:
        _check_vocabulary(config, source=source)
    else:
        data = dataclasses.replace(
            data, vocab=str(Path(workdir).absolute() / VOCABULARY), do_lower_case=tokenizer.do_lower_case
        )
    changed = [
        f"{field.name}={getattr(model, field.name)}"
        for field in dataclasses.fields(model)
        if getattr(model, field.name) != getattr(config.model, field.name)
    ]
    parts = ", ".join(source.parts)
    overrides = f"; config.model takes its shape: {' '.join(changed)}" if changed else ""
    report(f"starting from {source.path} ({source.architecture}: {parts}){overrides}")
    return validate(dataclasses.replace(config, model=model, data=data))


def save_vocabulary_of(source: PretrainedModel, *, workdir: Path) -> None:
    """Write the vocabulary of the `--init` model to WORKDIR/source_vocab."""
    source.require_tokenizer().save(workdir / VOCABULARY)


def _check_vocabulary(config: Config, *, source: PretrainedModel) -> None:
    given = load_tokenizer(config.data.vocab, do_lower_case=config.data.do_lower_case)
    requested = with_accents(given, config.data.strip_accents)
    trained = source.require_tokenizer()
    if requested.fingerprint != trained.fingerprint:
        raise UserError(
            f"config.data.vocab={config.data.vocab} (fingerprint {requested.fingerprint[:12]}) is not the vocabulary "
            f"of --init={source.path} ({trained.fingerprint[:12]}): leave config.data.vocab empty, or add words to the "
            f"model's vocabulary with `python -m bert_jax.export --checkpoint={source.path} --extend_vocab=WORDS "
            "--out=DIR` and set --init=DIR"
        )


def perplexity_before_and_after(metrics: str | Path) -> str:
    """Return a line with the held-out masked-LM perplexity at a run's first and last evaluation.

    Raises:
      UserError: if there are fewer than two evaluations.
    """
    evaluations = [
        (line["step"], line["eval/mlm_loss"])
        for line in read_log(metrics)
        if "step" in line and isinstance(line.get("eval/mlm_loss"), float | int)
    ]
    if len(evaluations) < 2:
        raise UserError(f"{metrics}: has {len(evaluations)} evaluations, but two are needed: set --config.eval.every")
    (first, before), (last, after) = evaluations[0], evaluations[-1]
    return (
        f"held-out perplexity before (step {first}) {math.exp(min(before, 700)):,.1f}, after (step {last}) "
        f"{math.exp(min(after, 700)):,.1f}"
    )
