"""Who may write to a run folder."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from bigtrain.errors import UserError
from bigtrain.runs.folder import RunFolder


def test_a_file_system_without_locks_is_not_taken_for_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(
        UserError, match=r"its file system cannot lock files \(Function not implemented\).*run\.dir=PATH"
    ):
        RunFolder(tmp_path).lock()
