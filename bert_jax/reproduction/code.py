"""The digest of the code that determines a result. Comments, docstrings and layout do not count."""

import ast
import functools
import hashlib
from pathlib import Path

import bert_jax


@functools.cache
def code_digest(packages: tuple[str, ...]) -> str:
    """Return a digest of what the modules of `packages` (folders of the package) compute."""
    root = Path(bert_jax.__file__).parent
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0{normalized(path.read_text(encoding='utf-8'))}\0".encode())
    return digest.hexdigest()[:12]


def normalized(source: str) -> str:
    """Return source code without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body[0] = ast.Pass()
    return ast.unparse(tree)
