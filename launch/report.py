"""One page of one or several runs: python launch/report.py RUN [RUN ...] --out FILE.html

The page is one file that opens without a network: curves, pictures by step, evaluations with their intervals, recipe,
environment, warnings. Of several runs it shows first what differs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bigtrain.cli import run_cli, say
from bigtrain.errors import UserError
from bigtrain.report.page import report
from bigtrain.runs import atomic


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folders")
    parser.add_argument("--out", metavar="FILE.html", type=Path, required=True, help="the page; replaced if it exists")
    arguments = parser.parse_args(argv)
    check_out(arguments.out)
    page = report(arguments.runs).encode()
    try:
        atomic.write_bytes(arguments.out, page)
    except OSError as error:
        raise UserError(f"{arguments.out}: cannot be written ({error.strerror})") from None
    say(f"the page: {arguments.out} ({len(page) / 1e6:.1f} MB)")


def check_out(path: Path) -> None:
    """Raises UserError, before anything is read, for a path that the page cannot be written to."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out: {path}: is not named as a page; give FILE.html")
    if not path.parent.is_dir():
        raise UserError(f"--out: {path}: there is no folder {path.parent}; make it first")
    try:
        atomic.check_replaceable(path)
    except OSError as error:
        raise UserError(f"--out: {path}: {error.strerror}; name another file") from None


if __name__ == "__main__":
    run_cli(main)
