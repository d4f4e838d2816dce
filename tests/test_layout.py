"""The rooms: imports run one way, and no room has a back door (HOUSE.md, section 1)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOTTOM = {"networks", "data", "runs", "cluster", "randomness", "options", "errors", "pictures"}
MIDDLE = {"training", "evaluation", "pipelines"}
ALLOWED = {
    "errors": set(),
    "options": set(),
    "randomness": set(),
    "runs": {"errors"},
    "cluster": {"errors", "options", "runs"},
    "pictures": {"errors", "runs"},
    "networks": {"errors", "options", "cluster"},
    "data": {"errors", "options", "randomness", "runs", "cluster"},
    "families": BOTTOM | {"families"} - {"data", "runs"},
    "training": BOTTOM | {"families"},
    "evaluation": BOTTOM | {"families"},
    "pipelines": BOTTOM | {"families"},
    "recipe": BOTTOM | MIDDLE | {"families"},
    "doors": BOTTOM | MIDDLE | {"families", "recipe"},
    "judging": BOTTOM | MIDDLE | {"families", "recipe"},
    "model": BOTTOM | MIDDLE | {"families", "recipe"},
    "observers": BOTTOM | MIDDLE | {"families", "recipe", "model", "judging"},
    "plan": BOTTOM | MIDDLE | {"families", "recipe", "model"},
}


def modules() -> list[Path]:
    return sorted((ROOT / "bigtrain").rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT / "bigtrain").parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module if node.module != "bigtrain" else "bigtrain." + node.names[0].name)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("bigtrain.")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    assert imported_rooms(path) - {here} <= ALLOWED[here]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_family_is_named_outside_its_room(path: Path) -> None:
    if room(path) not in ("families", "networks"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        words = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not words & {"gan", "vqvae", "prior", "diffusion"}


def test_no_module_is_a_drawer_for_everything() -> None:
    assert not {path.stem for path in modules()} & {"utils", "helpers", "common", "misc"}
