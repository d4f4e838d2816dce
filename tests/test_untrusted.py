"""Files that somebody else wrote end neither in a wait nor in a traceback, and their names write nothing but themselves."""

import os
import socket
from pathlib import Path

import pytest

from bigtrain import untrusted


def test_a_plain_file_is_read_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert untrusted.read_plain(tmp_path / "link", 7) == b"content"


def test_a_fifo_a_device_a_socket_and_a_folder_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="a FIFO, not a plain file"):
        untrusted.open_plain(tmp_path / "fifo")
    with pytest.raises(OSError, match="a device"):
        untrusted.open_plain("/dev/zero")
    with pytest.raises(OSError, match="Is a directory"):
        untrusted.open_plain(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="No such device"):
            untrusted.open_plain(tmp_path / "socket")


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="more than 10 bytes"):
        untrusted.read_plain(tmp_path / "sparse", 10)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"[" * 10**6, "levels"),
        (b"[" * 65 + b"]" * 65, "levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "levels"),
        (b"\xff", "utf-8"),
        (b"", "Expecting value"),
        (b"1" * 5000, "4300 digits"),
        (b"{}{}", "Extra data"),
    ],
    ids=["endless", "deep lists", "deep mappings", "no UTF-8", "empty", "digits", "two values"],
)
def test_bad_json_is_a_value_error(content: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        untrusted.parse_json(content)


def test_json_of_an_allowed_depth_is_read() -> None:
    value = untrusted.parse_json(b"[" * 64 + b"]" * 64)
    for _ in range(63):
        (value,) = value
    assert value == []


def test_text_is_printed_on_one_line_without_control_characters() -> None:
    assert untrusted.one_line("été \x1b[2Jred\nerror: \u202e\ud800") == "été \\x1b[2Jred\\nerror: \\u202e\\ud800"
