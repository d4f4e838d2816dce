"""Finds out which runs the selected tests compare, and gives each test the folders of its own."""

import time
from pathlib import Path

import pytest

from tests.family_costs import RUN, WAITED
from tests.promises.matrix import Matrix, Variant

WANTED = pytest.StashKey[list[tuple[Variant, str]]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """The same in every worker of xdist: each collects the same tests."""
    session.config.stash[WANTED] = [
        (variant, item.callspec.params["family"])
        for item in session.items
        if isinstance(item, pytest.Function)
        for marker in item.iter_markers("needs")
        for variant in marker.args
    ]


@pytest.fixture(scope="session")
def matrix(pytestconfig: pytest.Config, common_folder: Path) -> Matrix:
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
