"""Finds out which runs the selected tests compare, and gives each test the folders of its own."""

import time
from pathlib import Path

import pytest

from bigtrain.data.digits import digits_index
from bigtrain.families.family import find_family
from tests import fork_server
from tests.families_table import CASES
from tests.family_costs import RUN, WAITED
from tests.promises.matrix import Matrix, Variant
from tests.training.small_steps import SIZE

SELECTED = pytest.StashKey[set[str]]()
WANTED = pytest.StashKey[list[tuple[Variant, str]]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """The same in every worker of xdist: each collects the same tests."""
    parameters = (item.callspec.params for item in session.items if hasattr(item, "callspec"))
    session.config.stash[SELECTED] = {each["family"] for each in parameters if each.get("family") in CASES}
    session.config.stash[WANTED] = [
        (variant, item.callspec.params["family"])
        for item in session.items
        if isinstance(item, pytest.Function)
        for marker in item.iter_markers("needs")
        for variant in marker.args
    ]


@pytest.fixture(scope="session", autouse=True)
def libraries(pytestconfig: pytest.Config) -> None:
    """What the selected families import, once in a test process: diffusers takes two seconds, for any number of families."""
    for family in pytestconfig.stash[SELECTED]:
        find_family(CASES[family].options["kind"])


@pytest.fixture(scope="session")
def forks(one_cache_for_all: Path) -> None:
    """What all runs share: everything imported, and the digits."""
    fork_server.make_ready()
    digits_index("train", SIZE)


@pytest.fixture(scope="session")
def matrix(pytestconfig: pytest.Config, common_folder: Path, forks: None) -> Matrix:
    return Matrix(common_folder / "promises", pytestconfig.stash[WANTED])


@pytest.fixture
def runs(request: pytest.FixtureRequest, matrix: Matrix, family: str) -> list[Path]:
    """The folders of the runs that the test names (`needs`), in that order."""
    properties: list[tuple[str, object]] = request.node.user_properties
    folders = []
    for variant in (variant for marker in request.node.iter_markers("needs") for variant in marker.args):
        begin = time.monotonic()
        matrix.make(variant, family)
        properties.append((WAITED, time.monotonic() - begin))
        folder, result = matrix.result(variant, family)
        properties.append((RUN, (f"{variant.launch.name}/{folder.name}", result["seconds"], result["cpu_s"])))
        folders.append(folder)
    return folders
