"""The layout: imports run one way and in no circle, and what one family owns is named in no other package."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from bigtrain.families.abilities import ABILITIES
from bigtrain.families.family import Family, family_kinds, find_family
from bigtrain.options import Options

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"errors", "home", "signals"},
    {"recipe_yaml"},
    {"beats", "options", "randomness", "sizes", "untrusted", "wrong_values"},
    {"formats", "progress", "recipe_errors"},
    {"runs"},
    {"cluster"},
    {"networks", "data", "pictures"},
    {"features"},
    {"objectives"},
    {"families"},
    {"training", "evaluation", "exchange"},
    {"recipe", "pipelines"},
    {"inference"},
    {"plan", "cli", "doubts", "keys"},
    {"report"},
)
"""A package imports those of the lines above it, and none of its own line."""
WITHIN_DATA = ("data.read", "data.sources", "data.write")
"""Each imports those before it, and none after it."""
FAMILY_PACKAGES = {"families", "networks"}
"""Those whose modules, classes and functions a family owns."""
NAMING_PACKAGES = {"families", "networks", "objectives", "exchange/convert"}
"""Those in which they may be named; the last holds the names that others give to the same networks."""
SHARED_WORDS = {
    "codebook", "codebook size", "encoder", "level", "levels", "reconstruction", "tokenizer",
    "loss", "schedule", "start step", "steps",
}  # fmt: skip
"""Words of one family that mean the same in general: of codes, which are a kind of data, and then of any training."""
HOMONYMS = {
    "leave out", "p", "pipeline",
    "architecture", "beta", "bits", "blocks", "categories", "condition", "depth", "discriminator", "fake", "flip", "flow",
    "generator", "init", "kernel", "latent", "latents", "margin", "output", "outputs", "process", "real", "sampler",
    "shift", "sigma", "variance", "width",
    "resnet",
    "checkpoint", "model", "pool", "scale", "weights",
    "updates",
    "heads",
}  # fmt: skip
"""Words of one family that mean something else elsewhere, such as torch's Generator or multiprocessing's Process."""
FOREIGN_NAMES = ("DiffusionPipeline", "PredictionString", "capture_output")
"""Names that diffusers, ImageNet's tables and subprocess give, in which a family's word occurs."""


def modules() -> list[Path]:
    return sorted((ROOT / "bigtrain").rglob("*.py"))


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
    allowed = set().union(*LAYERS[:layer]) | {here}
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


Words = tuple[str, ...]


def test_what_one_family_owns_is_named_nowhere_else() -> None:
    """A family owns its kind, the fields of its options, and the modules, classes and functions of it and of its networks.

    None of these names occurs in an identifier, an import or a string outside the NAMING_PACKAGES, neither
    whole nor as consecutive words of something longer, in whatever case and in singular or plural: a message that says "the
    unets" names `unet`, and `GANOptions` names `gan`. Docstrings are left out, since no code can depend on them: one may give
    an option of a family as an example where its reader needs one.
    """
    excepted = {words_of(name) for name in SHARED_WORDS | HOMONYMS}
    names, ever_owned = owned_names(), owned_names(by_one_alone=False)
    assert excepted <= ever_owned, f"owned by no family, so no exceptions: {excepted - ever_owned}"
    found = {path: names_in(path, names | excepted) for path in [*modules(), *sorted((ROOT / "launch").glob("*.py"))]}
    exempt = [ROOT / "bigtrain" / package for package in NAMING_PACKAGES]
    outside = {path: named for path, named in found.items() if not any(map(path.is_relative_to, exempt))}
    assert excepted <= set().union(*outside.values()), "an exception that nothing needs"
    leaks: dict[str, list[str]] = {}
    for path, named in outside.items():
        for name in named - excepted:
            leaks.setdefault(" ".join(name), []).append(str(path.relative_to(ROOT)))
    assert not leaks, (
        "these words are names of one family's options, modules, classes or functions. Code of that family belongs into its "
        "own files. A word that means something else there, as the width of a picture, goes into HOMONYMS:\n"
        + "\n".join(f"{word!r}: {len(paths)} files, such as {', '.join(paths[:3])}" for word, paths in leaks.items())
    )


def owned_names(by_one_alone: bool = True) -> set[Words]:
    """The names that one family owns, without those that the base class of all families and their abilities give. With
    `by_one_alone` an option that several families have is none."""
    owners: dict[str, set[str]] = {}
    for kind in family_kinds():
        family = find_family(kind)
        if not family.__module__.startswith("bigtrain."):
            continue  # the tests' own toy
        for name in {kind, *fields_of(family.options_class), *fields_of(getattr(family, "sampling_class", Options))}:
            owners.setdefault(name, set()).add(kind)
    names = {name for name, kinds in owners.items() if len(kinds) == 1 or not by_one_alone}
    for path in modules():
        parts = dotted(path).split(".")
        if parts[0] in FAMILY_PACKAGES and len(parts) == 3 and parts[1] != "layers":
            names.add(path.stem)
            names |= {
                node.name
                for node in ast.parse(path.read_text(encoding="utf-8")).body
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            }
    given = {name for base in (Family, *ABILITIES) for name in {*dir(base), *base.__annotations__}}
    return {words_of(name) for name in names} - {words_of(name) for name in given}


def names_in(path: Path, names: set[Words]) -> set[Words]:
    """Those of `names` that occur in the identifiers, imports and strings of a file."""
    longest = max(map(len, names))
    found = set()
    for text in texts_of(path):
        words = words_of(text)
        parts = [words[i : i + n] for i in range(len(words)) for n in range(1, min(longest, len(words) - i) + 1)]
        found |= {*parts, *((*part[:-1], part[-1].removesuffix("s")) for part in parts)} & names
    return found


def texts_of(path: Path) -> set[str]:
    """The identifiers, imported modules and strings of a file, docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            texts.add(node.value)
        elif isinstance(node, ast.Name):
            texts.add(node.id)
        elif isinstance(node, ast.Attribute):
            texts.add(node.attr)
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            texts.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.alias):
            texts.add(node.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            texts.add(node.module)
    return texts


def words_of(text: str) -> Words:
    """The words of an identifier or a sentence in lower case, without FOREIGN_NAMES and Python's own, such as __init__."""
    ours = re.sub("|".join([r"\b__\w+?__\b", *FOREIGN_NAMES]), " ", text)
    return tuple(map(str.lower, re.findall(r"[A-Z]{2,}(?=s\b)|[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", ours)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the unet's blocks_per_level", ("the", "unet", "s", "blocks", "per", "level")),
        ("GANOptions", ("gan", "options")),
        ("UNet2DModel", ("u", "net", "d", "model")),
        ("recipes/pixelcnn_*.yaml", ("recipes", "pixelcnn", "yaml")),
        ("GANs", ("gan", "s")),
        ("Type.__init__", ("type",)),
    ],
)
def test_words_of_identifiers_and_sentences(text: str, words: Words) -> None:
    assert words_of(text) == words


def test_no_module_is_a_drawer_for_everything() -> None:
    assert not {path.stem for path in modules()} & {"utils", "helpers", "common", "misc"}
