"""The layout: imports run one way and in no circle, and what one family owns is named in no other package."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from bigtrain.families.family import family_kinds, find_family

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"errors"},
    {"options", "randomness", "sizes"},
    {"formats"},
    {"runs"},
    {"cluster"},
    {"networks", "data", "pictures"},
    {"features"},
    {"families"},
    {"training", "evaluation", "exchange"},
    {"recipe"},
    {"inference"},
    {"plan", "cli"},
)
"""A package imports those of the lines above it, and none of its own line."""
WITHIN_DATA = ("data.read", "data.sources", "data.write")
"""Each imports those before it, and none after it."""
FAMILY_PACKAGES = {"families", "networks"}
SHARED_WORDS = {
    "batch_size", "channels", "codebook_size", "codes", "condition", "dropout", "generator", "kind", "latent", "layers",
    "level", "levels", "loss", "network", "optimizer", "sample", "samples", "sampling", "schedule", "seed", "steps",
    "tokenizer", "variance", "variant",
}  # fmt: skip
"""Words of a family's options that mean something in general too: codes and their tokenizer are a kind of data."""
HOMONYMS = {"Generator", "Level", "Process", "interpolate", "kernel", "sampler", "statistics", "to_diffusers"}
"""Public names that stand in other packages for something else: torch's Generator, multiprocessing's Process, F.interpolate."""
THEIRS = {"exchange": {"unet", "init"}}
"""By package, arguments that a library gives their names: diffusers calls its pipelines with `unet`."""


def modules() -> list[Path]:
    return [path for path in sorted((ROOT / "bigtrain").rglob("*.py")) if "pipelines" not in path.parts]


def dotted(path: Path) -> str:
    """`data.read.stream` for bigtrain/data/read/stream.py, `data` for bigtrain/data/__init__.py."""
    return ".".join(path.relative_to(ROOT / "bigtrain").with_suffix("").parts).removesuffix("__init__").rstrip(".")


KNOWN = {dotted(path) for path in modules()}


def imported(path: Path) -> set[str]:
    """The modules of bigtrain that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bigtrain":
            module = node.module.removeprefix("bigtrain").lstrip(".")
            whole = {f"{module}.{alias.name}".lstrip(".") for alias in node.names}
            names |= whole & KNOWN or {module}
        elif isinstance(node, ast.Import):
            names |= {a.name.removeprefix("bigtrain.") for a in node.names if a.name.startswith("bigtrain.")}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    here = dotted(path).split(".")[0]
    if not here:
        return
    (layer,) = (number for number, packages in enumerate(LAYERS) if here in packages)
    allowed = set().union(*LAYERS[:layer]) | {here, "pipelines"}  # a re-export of the exchange, for old folders
    assert {name.split(".")[0] for name in imported(path)} <= allowed
    for number, package in enumerate(WITHIN_DATA):
        if dotted(path).startswith(package):
            assert not [name for name in imported(path) if name.startswith(WITHIN_DATA[number + 1 :])]


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = {dotted(path): imported(path) & KNOWN for path in modules()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for other in sorted(arrows.get(module, set())):
                visit(other, (*path, module))
            done.add(module)

    for module in sorted(arrows):
        visit(module, ())


def fields_of(options: Any) -> Iterator[str]:
    """The names of an options class's fields, and of those within them."""
    if isinstance(options, type) and issubclass(options, BaseModel):
        for name, field in options.model_fields.items():
            yield name
            yield from fields_of(field.annotation)
    else:
        for part in get_args(options):
            yield from fields_of(part)


def test_what_one_family_owns_is_named_nowhere_else() -> None:
    """Fields of its options, the classes and functions of its modules and of its networks, its kind."""
    owners: dict[str, set[str]] = {}
    for kind in family_kinds():
        family = find_family(kind)
        if not family.__module__.startswith("bigtrain."):
            continue  # the tests' own toy
        for name in {kind, *fields_of(family.options_class), *fields_of(family.sampling_class)}:
            owners.setdefault(name, set()).add(kind)
    names = {name for name, kinds in owners.items() if len(kinds) == 1} - SHARED_WORDS
    for path in modules():
        parts = dotted(path).split(".")
        if parts[0] in FAMILY_PACKAGES and len(parts) == 3 and parts[1] != "layers":
            names |= {
                node.name
                for node in ast.parse(path.read_text(encoding="utf-8")).body
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            }
    names -= SHARED_WORDS | HOMONYMS
    leaks = []
    for path in [*modules(), *sorted((ROOT / "launch").glob("*.py"))]:
        package = "launch" if path.parent.name == "launch" else dotted(path).split(".")[0]
        if package not in FAMILY_PACKAGES:
            leaked = words_of(path) & names - THEIRS.get(package, set())
            leaks += [f"{path.relative_to(ROOT)}: {word}" for word in sorted(leaked)]
    assert leaks == []


def words_of(path: Path) -> set[str]:
    """Identifiers and string constants of a file, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    words = set()
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            words.add(node.value)
        elif isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            words.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            words.add(node.name)
    return words


def test_no_module_is_a_drawer_for_everything() -> None:
    assert not {path.stem for path in modules()} & {"utils", "helpers", "common", "misc"}
