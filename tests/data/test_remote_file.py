"""Parts of files at URLs are those of the file, or a sentence."""

import random
import tempfile
from pathlib import Path

import pytest

from bigtrain.data.remote import Origin
from bigtrain.data.remote_file import NoParts, RemoteFile
from bigtrain.errors import UserError
from tests.data.faulty_server import serving

DATA = random.Random(0).randbytes(300_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path


def test_any_parts_in_any_order_are_those_of_the_file(folder: Path) -> None:
    draws = random.Random(5)
    with serving(folder) as server, tempfile.TemporaryFile() as kept:
        with RemoteFile(f"{server.url}/file", Origin(), kept) as file:
            for _ in range(200):
                begin = draws.randrange(len(DATA))
                end = begin + draws.choice([0, 1, 500, 30_000, 10**9])
                assert file[begin:end] == DATA[begin:end], (begin, end)
        assert server.bodies["file"] == len(DATA)  # no byte came twice


@pytest.mark.parametrize(("fault", "ranges"), [("", False), ("all", True)])
def test_a_server_that_gives_all_where_a_part_was_asked_for_gives_no_parts(
    fault: str, ranges: bool, folder: Path
) -> None:
    serve = serving(folder, lambda path, before: fault, ranges=ranges)
    with serve as server, tempfile.TemporaryFile() as kept, pytest.raises(NoParts):
        RemoteFile(f"{server.url}/file", Origin(), kept)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(folder: Path) -> None:
    with serving(folder) as server, tempfile.TemporaryFile() as kept:
        file = RemoteFile(f"{server.url}/file", Origin(), kept)
        (folder / "file").write_bytes(DATA + bytes(512))
        with pytest.raises(UserError, match="it has 300512 bytes, not 300000 as before: it was replaced"):
            file[100_000:100_001]


def test_the_place_that_a_server_points_to_is_asked_directly_until_its_signature_expires(folder: Path) -> None:
    def choose(path: str, before: int) -> str:
        return "moved" if not path.startswith("signed") else "forbidden" if before > 1 else ""

    with serving(folder, choose) as server, tempfile.TemporaryFile() as kept:
        file = RemoteFile(f"{server.url}/file", Origin(), kept)
        for begin in range(50_000, 250_000, 50_000):
            assert file[begin : begin + 10] == DATA[begin : begin + 10]
        assert [count for path, count in server.requests.items() if path.startswith("signed")] == [3, 3, 1]
