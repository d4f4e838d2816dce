"""Finds out which runs the selected tests compare, and gives each test the folders of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.promises.fork_server import ForkServer
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
    return [matrix.run(variant, family) for marker in request.node.iter_markers("needs") for variant in marker.args]


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(tmp_path_factory.mktemp("fork_server") / "stderr") as server:
        yield server
