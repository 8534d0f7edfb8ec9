"""The block to paste into a report: verdicts first, then a section per check, at most 80 columns wide."""

import textwrap
from collections.abc import Mapping

from bert_jax.diagnosis.results import CheckResult, Verdict

WIDTH = 80


def as_block(results: Mapping[str, CheckResult], *, when: str, took: str) -> str:
    """Return the results by the names of their checks as fenced plain text."""
    counts = {verdict: sum(result.verdict is verdict for result in results.values()) for verdict in Verdict}
    total = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    column = max(map(len, results), default=0) + 2
    lines = [f"bert-jax doctor, {when}, took {took}: {total}", ""]
    for name, result in results.items():
        lines += _wrapped(verdict_line(result), first=f"{name:<{column}}", rest=" " * column)
    for name, result in results.items():
        if result.details:
            lines += ["", f"{name}:"]
            for detail in result.details:
                lines += _wrapped(detail, first="  ", rest="    ")
    return "\n".join(["```text", *lines, "```"])


def verdict_line(result: CheckResult) -> str:
    """Return the verdict with its sentence."""
    return f"{result.verdict.value}: {result.summary}" if result.summary else result.verdict.value


def _wrapped(text: str, *, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text.replace("```", "'''"),
        width=WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=True,
    )
