"""The floors of the package: who may import whom, no circles, nothing heavy or private where it does not belong.

`MAY_IMPORT` is the target. `VIOLATIONS` and the other lists of exceptions hold what is still to be moved: they must
become empty. A test fails when something is added to the code that the table forbids, and when a listed exception is
gone.
"""

import ast
import re
from collections.abc import Iterable

import pytest

from tests.import_graph import PACKAGE, ROOT, Import, circles, modules, reachable

COMMANDS = {
    "__main__",
    "train",
    "distill",
    "prepare",
    "evaluate",
    "predict",
    "export",
    "finetune",
    "plan",
    "doctor",
    "report",
    "reproduce",
}
# Files that everything may use; none of them needs jax, but `jax_internals` inside its functions.
FOUNDATIONS = {
    "buckets",
    "errors",
    "files",
    "json_files",
    "json_forms",
    "limits",
    "locations",
    "progress",
    "streams",
    "wrapping",
    "invocation",
    "crc32c",
    "jax_internals",
    "chips",
}

# Which package may import which, from the bottom up; every package may import itself and the foundations.
MAY_IMPORT = {
    "foundations": "",
    "types": "",
    "config": "",
    "rows": "types",
    "data": "config rows",
    "parallel": "config",
    "model": "config types",
    "training": "config parallel types",
    "kinds": "config model rows training types",
    "tasks": "config data kinds rows",
    "runs": "config parallel training types",
    "convert": "config data kinds model rows runs types",
    "pretrain": "config convert data model parallel rows runs training types",
    "finetuning": "config convert data kinds model parallel rows runs tasks training types",
    "prediction": "config convert data kinds model rows tasks types",
    "planning": "config data model parallel pretrain rows training types",
    "pages": "config data runs",
    "diagnosis": "config model parallel planning pretrain rows types",
    "reproduction": "config data finetuning model pages parallel planning prediction pretrain runs tasks",
    "commands": "config convert data diagnosis finetuning pages parallel planning prediction pretrain reproduction "
    "runs tasks training types",
}

# Arrows that the table forbids: from a module to a package. Must become empty.
VIOLATIONS: set[tuple[str, str]] = set()

# Packages that take groups of a config and numbers, never the config of a whole run.
WITHOUT_RUN_CONFIG = {"parallel", "training", "model", "rows", "kinds", "data"}
RUN_CONFIGS = {"Config", "FinetuneConfig"}
# Modules that take one all the same. Must become empty.
TAKE_RUN_CONFIG: set[str] = set()

# Private names that are used outside of their module. Must become empty.
PRIVATE_NAMES: set[tuple[str, str]] = set()

HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "tensorflow", "torch"}
WITHOUT_JAX = {"config", "data"}

# Imports inside functions outside of commands, each with the reason; never to hide a circle.
LAZY = {
    ("", "prediction.model"): "start-up: bert_jax.load brings jax, which the data workers do without",
    ("", "pretrain.run"): "start-up: as bert_jax.load",
    ("", "finetuning.finetune"): "start-up: as bert_jax.load",
    ("", "config.files"): "start-up: as bert_jax.train",
    ("", "config"): "start-up: brings ml_collections, for bert_jax.train only",
    ("", "config.finetuning"): "start-up: as bert_jax.train",
    ("convert.loading", "convert.workdir"): "start-up: brings jax and Orbax, which only workdirs need",
    ("model.attention", "model.kernels.gpu_attention"): "optional: Pallas for GPUs, deprecated in jax",
    ("model.residual_norm", "model.kernels.gpu_residual_norm"): "optional: Pallas for GPUs, deprecated in jax",
    ("jax_internals", "jax"): "optional: each name may be missing, and flags are read without jax",
    ("data.loader", "grain"): "start-up: brings jax where that is installed",
    ("data.dataset_info", "tensorflow_datasets"): "start-up: a second, to describe a finished data set only",
    ("data.dataset_info", "etils"): "start-up: with tensorflow_datasets",
    ("data.tfds_builders", "tensorflow_datasets"): "start-up: a second, for data sets by name only",
    ("tasks.glue_tfds", "tensorflow_datasets"): "start-up: a second, for data sets by name only",
    ("buckets", "fsspec"): "start-up: local paths need no library of a store",
    ("runs.bucket_lock", "google"): "optional: an extra",
    ("data.arrow_files", "pyarrow"): "optional: an extra",
    ("data.fast_tokenizer", "tokenizers"): "optional: an extra",
    ("data.workers", "apache_beam"): "optional: an extra",
    ("runs.writers", "tensorboardX"): "optional: an extra",
    ("runs.writers", "wandb"): "optional: an extra",
    ("pages.plots", "matplotlib"): "optional: an extra",
    ("reproduction.plots", "matplotlib"): "optional: an extra",
}


def short(name: str) -> str:
    """Return a module's name without that of the package."""
    return name.removeprefix(PACKAGE).removeprefix(".")


def package_of(name: str) -> str:
    """Return the row of `MAY_IMPORT` that a module belongs to."""
    first = short(name).partition(".")[0]
    if first in FOUNDATIONS:
        return "foundations"
    return "commands" if first in COMMANDS | {"", "cli", "usage"} else first


def arrows() -> set[tuple[str, str]]:
    """Return (module, package) for every import that leaves a package."""
    return {
        (short(module.name), package_of(found.module))
        for module in modules().values()
        for found in module.own
        if package_of(found.module) != package_of(module.name)
    }


def check(found: Iterable[object], expected: Iterable[object]) -> None:
    """Compare with a list of exceptions."""
    found, expected = set(found), set(expected)
    assert not found - expected, "new: move the code, or the import, to where the table allows it"
    assert not expected - found, "gone: take it out of the list of exceptions"


def test_every_module_has_a_row():
    assert {package_of(name) for name in modules()} <= MAY_IMPORT.keys()


def test_packages_import_only_what_lies_below_them():
    found = {
        (module, package)
        for module, package in arrows()
        if package != "foundations" and package not in MAY_IMPORT[package_of(module)].split()
    }
    check(found, VIOLATIONS)


def test_the_table_itself_has_no_circle_and_names_only_its_rows():
    rows = {name: allowed.split() for name, allowed in MAY_IMPORT.items()}
    assert circles(rows) == []
    assert {name for allowed in rows.values() for name in allowed} <= rows.keys()


def test_nothing_imports_a_command():
    assert {short(name) for name in modules()} >= COMMANDS
    for module in modules().values():
        targets = {short(found.module) for found in module.own} & COMMANDS
        assert not targets, f"{module.name} imports {targets}"


def test_modules_form_no_circle_not_even_through_imports_inside_functions():
    assert circles({name: {found.module for found in module.own} for name, module in modules().items()}) == []


def test_imports_inside_functions_have_a_reason():
    found = set()
    for module in modules().values():
        if package_of(module.name) == "commands" and module.name != PACKAGE:
            continue  # commands import what they call when the flags are known to be right
        for lazy in module.imports:
            if lazy.is_lazy:
                is_own = lazy.module.startswith(f"{PACKAGE}.")
                found.add((short(module.name), short(lazy.module) if is_own else lazy.module.partition(".")[0]))
    check(found, LAZY)


@pytest.mark.parametrize("package", sorted(WITHOUT_JAX))
def test_data_and_config_know_no_jax(package: str):
    edges = {
        name: {found.module for found in module.imports if not found.is_lazy and not found.is_checking}
        | {name.rpartition(".")[0]}  # a module brings the package that it is in
        for name, module in modules().items()
    }
    own = [name for name in modules() if package_of(name) == package]
    assert own
    for name in own:
        outside = {target.partition(".")[0] for target in reachable(name, edges=edges)}
        assert not outside & HEAVY, f"{name} brings {sorted(outside & HEAVY)}"


def test_only_commands_read_flags():
    readers = {m.name for m in modules().values() for i in m.imports if i.module.startswith("absl") and i.name != ""}
    assert {package_of(name) for name in readers} == {"commands"}


def test_only_parallel_places_arrays_on_a_mesh():
    def names(found: Import) -> set[str]:
        return {found.name, found.module.rpartition(".")[2]}

    users = {m.name for m in modules().values() for i in m.imports if names(i) & {"NamedSharding", "PartitionSpec"}}
    users |= {
        m.name
        for m in modules().values()
        for node in ast.walk(m.tree)
        if isinstance(node, ast.Attribute) and node.attr == "NamedSharding"
    }
    assert {package_of(name) for name in users} == {"parallel"}


def test_mathematics_takes_groups_and_numbers_not_the_config_of_a_run():
    found = {
        short(module.name)
        for module in modules().values()
        for taken in module.own
        if package_of(module.name) in WITHOUT_RUN_CONFIG
        and package_of(taken.module) == "config"
        and (taken.name in RUN_CONFIGS or (taken.module == f"{PACKAGE}.config" and not taken.name))
    }
    check(found, TAKE_RUN_CONFIG)


def test_private_names_stay_in_their_module():
    found = set()
    for module in modules().values():
        aliases = _module_aliases(module.tree)
        for taken in module.own:
            if taken.name.startswith("_") and not taken.name.startswith("__"):
                found.add((short(module.name), f"{short(taken.module)}.{taken.name}"))
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            if node.value.id in aliases and node.attr.startswith("_") and not node.attr.startswith("__"):
                found.add((short(module.name), f"{short(aliases[node.value.id])}.{node.attr}"))
    check(found, PRIVATE_NAMES)


def _module_aliases(tree: ast.Module) -> dict[str, str]:
    """Return the names by which a module knows others of the package."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if f"{node.module}.{alias.name}" in modules():
                    aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return aliases


def test_private_names_of_libraries_are_used_in_one_file():
    users = {
        short(module.name)
        for module in modules().values()
        for found in module.imports
        for part in found.module.split(".")
        if part.startswith("_") and not part.startswith("__")
    }
    users |= {short(m.name) for m in modules().values() if "jax._src" in m.file.read_text(encoding="utf-8")}
    assert users == {"jax_internals"}


def test_launchers_use_the_package_by_its_commands_alone():
    used_by_any = set()
    for file in sorted((ROOT / "launch").iterdir()):
        text = file.read_text(encoding="utf-8")
        used = set(re.findall(r"-m bert_jax\.(\w+)", text))
        used_by_any |= used
        assert used <= COMMANDS, f"{file.name} runs {used - COMMANDS}"
        assert not re.search(r"from bert_jax|import bert_jax\.", text), file.name
    assert "train" in used_by_any


def test_the_table_of_packages_in_the_architecture_page_is_this_one():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = re.search(r"^## Packages$(.*?)^## ", text, flags=re.MULTILINE | re.DOTALL)
    assert section, "docs/architecture.md has no section Packages"
    table: dict[str, set[str]] = {}
    named: set[str] = set()
    for line in section[1].splitlines():
        if not line.startswith("| `"):
            continue
        first, _, allowed = (cell.strip() for cell in line.strip("|").split("|"))
        names = {name.removesuffix("/").removesuffix(".py") for name in re.findall(r"[\w./]+", first)}
        named |= names
        for row in {package_of(f"{PACKAGE}.{name}") for name in names}:
            assert row not in table, f"two rows for {row}"
            table[row] = set(re.findall(r"\w+", allowed))
    assert table.pop("launch") == {"commands"}
    assert table == {name: set(allowed.split()) for name, allowed in MAY_IMPORT.items()}
    assert {short(name).partition(".")[0] for name in modules()} - {""} <= named
