"""What all commands share."""

from pathlib import Path

from tests import fork_server
from tests.runs_of import environment

WARNS = """
import logging
from bigtrain.cli import run_cli
run_cli(lambda argv: logging.getLogger("bigtrain.features.cache").warning("%s: made again", "a\\nerror: b\\x1b[2J"))
"""


def test_a_warning_has_one_line_whatever_the_name_in_it(tmp_path: Path) -> None:
    (tmp_path / "warns.py").write_text(WARNS)
    out, err = tmp_path / "stdout", tmp_path / "stderr"
    assert fork_server.start([tmp_path / "warns.py"], environment(), out, err).wait() == 0
    assert err.read_text() == "a\\nerror: b\\x1b[2J: made again\n"
