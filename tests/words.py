"""Count words of this project's past that the field does not use, in all text that a user or a reader sees.

    python tests/words.py [TREE]             # a line per finding, and how many
    python tests/words.py --count [TREE]     # how many per file only

Read are strings, docstrings and comments of Python files, and whole Markdown files, scripts and notebooks. Names are
read too: a variable says what it holds ("restored"), not what happened to it ("found"). Spelling as such is
codespell's work (`pyproject.toml`).
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ("bert_jax/**/*.py", "configs/*.py", "docs/*.py", "launch/*.py", "benchmarks/*.py")
PROSE = (
    "*.md",
    "docs/**/*.md",
    "launch/*.md",
    "launch/*.sh",
    "benchmarks/*.md",
    "launch/*.ipynb",
    "setup.cfg",
    "pyproject.toml",
    "mkdocs.yml",
    ".ci/*",
    ".github/**/*.yml",
    ".pre-commit-config.yaml",
)

UNITS = (
    "rows|sequences|tokens|bytes|cycles|FLOPs?|flops|instances|words|examples|seconds|steps|values|masks|kernels|times|once|twice|heads|queries"
    "|predictions|files|lines|documents|epochs|runs|microseconds|milliseconds|minutes|parameters|hours|chips|devices|shards|labels|numbers|bits|sums|draws"
    "|integers|positions|slots|entries|objects|gradients|copies|threads|processes|calls|passes|pairs|sentences|characters|MB|GB|KB|GiB|MiB|KiB|ms|us"
)
PER = (
    "steps?|row|word|token|chip|core|second|line|file|array|layer|task|host|head|shard|document|batch|sequence|instance|parameter|replica|example|run"
    "|device|slice|kind|config|label|question|paragraph|sentence|piece|key|query|epoch|day|name|field|value|benchmark|platform|type|class|seed|process"
    "|interval|micro-batch|architecture|phase|block|mask|group|gate|slot|position|pair|image|axis|dimension|object|command|character|probability|pass"
)

LINKS = "is|are|was|has|from|in|of|on|with|at|by|to|as|for|and|or|than|like|into|over"


class Word(NamedTuple):
    """What is not written (a regular expression), what is written instead, and the files in which it is right."""

    pattern: str
    instead: str
    except_in: str = r"(?!)"


_ORIGIN_KEY = r"finetuning/origin\.py"  # a key of origin.json, which earlier versions wrote

WORDS = (
    Word(r"\bmend(s|ed|ing)?\b", "fix"),
    Word(r"\bdrawn\b|\bfresh (parameters|weights|heads?|encoder)\b", "randomly initialized; sampled", _ORIGIN_KEY),
    Word(r"\bbehind\b", "after, following"),
    Word(r"\banew\b", "again, from scratch", _ORIGIN_KEY),
    Word(r"\b(go|goes|going|went|gone) on\b", "resumes, continues"),
    Word(r"\bpass(ed|es|ing)? over\b", "skipped"),
    Word(r"\bpart(ed|s) by\b", "separated by"),
    Word(r"\bstands? (in|at|beside|next|there|alone|on)\b", "is in, appears in"),
    Word(r"\bso many\b", "N"),
    Word(r"\b(is|are|be) none of\b", "is not one of"),
    Word(r"(?<!there\s)\b(is|are) no (?!longer\b|more\b|other\b)[a-zA-Z`{]", "is not a"),
    Word(r"\b(cannot|can|could|to) be had\b", "is unavailable"),
    Word(r"\brights\b", "permissions"),
    Word(r"\b(?-i:figures?)\b", "metrics, values, results"),  # Figure 3 is the paper's
    Word(rf"\b({UNITS}|\d+ ?%) an? ({PER})\b", "per"),
    Word(rf"\b(an?|one) (\w+ )?(?!(?:{LINKS})\b)[\w-]+ (?-i:an?) ({PER})\b", "per"),
    Word(r"\bbeside\b", "compared with, next to"),
    Word(r"\b(told|tells?|telling)\b", "reported, given, distinguished"),
    Word(r"\bfor ever\b", "forever"),
    Word(r"\b(find|finds|found) out\b|\bby looking\b", "detected"),
    Word(r"\bwastes? no\b", "sequence packing"),
    Word(r"\bpieces?\b", "tokens", r"bert_jax/data/|sentencepiece|benchmarks/tokenizer"),
    Word(r"\bown (rows?|tasks?)\b", "custom data, custom task"),
    Word(r"\bconstant answers?\b|\bthe constant\b(?! of)", "majority-class baseline"),
    Word(r"\broll[- ]call\b", "rendezvous"),
    Word(r"\b(doors?|rooms?|(?-i:house))\b", "command, space, package"),
    Word(r"\bthe way (there|back)\b", "forward pass, backward pass"),
    Word(r"\b(spool\w*|portions?|lenders?)\b", "intermediate shards, chunk, donor"),
    Word(r"\bshares? of\b|\b(an?|the|its|their|whose|this|own) shares?\b", "shard; fraction"),
    Word(r"\bplaces\b|\b(an?|the|its|their|whose|this|each|every|one) place\b", "position, index, offset"),
    Word(r"\b(?-i:SOURCE)\b", "model"),
    Word(r"\bpacked rows?\b|\brows of (\d|\{)", "packed sequences, sequences of N"),
    Word(r"\bset aside\b", "quarantined"),
    Word(r"\b(un)?like as\b|\bas good as\b", "the same"),
)
DOCSTRING = re.compile(r"(Be|Hold|Say|Tell|Give|Let|Stand|Carry) ")
NAMES = {
    "found",
    "wanted",
    "given",
    "begun",
    "kept",
    "theirs",
    "some",
    "mine",
    "drawn",
    "told",
    "asked",
    "done_so",
    "gone",
    "taken",
    "ours",
    "meant",
    "said",
    "made",
}


class Finding(NamedTuple):
    """A place in a file with what should be written there."""

    path: str
    line: int
    text: str
    instead: str


def in_text(path: str, line: int, text: str) -> Iterator[Finding]:
    """Yield what the list finds in a piece of text that begins at a line."""
    # Links and code spans hold names, not prose; names have a check of their own.
    text = re.sub(r"`[^`\n]*`|https?://\S+", lambda match: " " * len(match.group()), text)
    for word in WORDS:
        if not re.search(word.except_in, path):
            for match in re.finditer(word.pattern.replace(" ", r"\s+"), text, re.IGNORECASE):
                yield Finding(path, line + text.count("\n", 0, match.start()), match.group(), word.instead)


def in_python(path: str, source: str) -> Iterator[Finding]:
    """Yield findings in strings, docstrings, comments and names."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from in_text(path, node.lineno, node.value)
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            if DOCSTRING.match(text):
                yield Finding(path, node.lineno, text.split("\n")[0], "a noun phrase; Return whether ...")
        name = (
            node.arg
            if isinstance(node, ast.arg)
            else node.id
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            else None
        )
        if isinstance(node, ast.arg | ast.Name) and name in NAMES:
            yield Finding(path, node.lineno, f"name {name}", "a noun that says what it holds")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from in_text(path, token.start[0], token.string)


def in_file(path: Path, name: str) -> Iterator[Finding]:
    """Yield findings in one file."""
    source = path.read_text()
    if path.suffix == ".py":
        yield from in_python(name, source)
    elif path.suffix == ".ipynb":
        for number, cell in enumerate(json.loads(source)["cells"]):
            yield from in_text(f"{name}[{number}]", 1, "".join(cell["source"]))
    else:
        # Code blocks of Markdown hold output of commands as well, which users read.
        yield from in_text(name, 1, source)


def findings(tree: Path = ROOT) -> list[Finding]:
    """Return all findings in a source tree, by file and line."""
    paths = sorted({path for pattern in (*PYTHON, *PROSE) for path in tree.glob(pattern) if path.is_file()})
    found_in_all = [finding for path in paths for finding in in_file(path, str(path.relative_to(tree)))]
    return sorted(set(found_in_all))


def main() -> int:
    """Print findings; return 1 if there are any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tree", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--count", action="store_true", help="only how many per file")
    arguments = parser.parse_args()
    results = findings(arguments.tree)
    if arguments.count:
        for path, number in Counter(finding.path for finding in results).most_common():
            print(f"{number:5} {path}")
    else:
        for finding in results:
            text = finding.text.replace("\n", " ")
            print(f"{finding.path}:{finding.line}: {text!r} -> {finding.instead}")
    print(f"{len(results)} words of the list in {arguments.tree.name}")
    return 1 if results else 0


if __name__ == "__main__":
    sys.exit(main())
