"""The source of the package as a graph of imports, read without importing it."""

import ast
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "bert_jax"


@dataclasses.dataclass(frozen=True)
class Import:
    """One name that a module imports: from which module, which name of it, and where in the file.

    `module` is the full name of the imported module; where that is one of the package, `name` is what is taken from it,
    empty for the module itself.
    """

    module: str
    name: str
    line: int
    is_lazy: bool  # inside a function
    is_checking: bool  # for type checkers only


@dataclasses.dataclass(frozen=True)
class Module:
    """A module of the package: its name, its syntax tree and its imports."""

    name: str
    file: Path
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def own(self) -> list[Import]:
        """Return the imports of modules of the package at run time, the root package left out."""
        return [i for i in self.imports if i.module.startswith(f"{PACKAGE}.") and not i.is_checking]


@functools.cache
def modules() -> Mapping[str, Module]:
    """Return the modules of the package by name."""
    files: dict[str, Path] = {}
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        files[name.removesuffix(".__init__")] = file
    result = {}
    for name, file in files.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        result[name] = Module(name, file, tree, tuple(_imports(tree.body, known=files)))
    return result


def _imports(
    body: Iterable[ast.AST], *, known: Mapping[str, Path], lazy: bool = False, checking: bool = False
) -> list[Import]:
    found: list[Import] = []
    for node in body:
        if isinstance(node, ast.Import):
            found += [Import(alias.name, "", node.lineno, lazy, checking) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                module, name = (full, "") if full in known else (str(node.module), alias.name)
                found.append(Import(module, name, node.lineno, lazy, checking))
        else:
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            children = ast.iter_child_nodes(node)
            found += _imports(children, known=known, lazy=lazy or inside, checking=checking or guarded)
    return found


def circles(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other (Tarjan's strongly connected components of more than one)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in edges.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in edges.get(node, ()):
                found.append(sorted(group))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def reachable(start: str, *, edges: Mapping[str, Iterable[str]]) -> set[str]:
    """Return what is reached from `start`, itself included."""
    found, pending = {start}, [start]
    while pending:
        new = set(edges.get(pending.pop(), ())) - found
        found |= new
        pending += new
    return found
