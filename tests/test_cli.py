"""What all commands share."""

import argparse
from pathlib import Path

import pytest

from bigtrain.cli import add_flags, from_flags
from bigtrain.errors import UserError
from bigtrain.families.autoencoders.vdvae import VDVAESamplingOptions
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


def sampling_of(defaults: VDVAESamplingOptions, *words: str) -> VDVAESamplingOptions:
    parser = argparse.ArgumentParser()
    add_flags(parser, VDVAESamplingOptions)
    return from_flags(defaults, parser.parse_args(words))


def test_of_flags_that_say_one_thing_in_two_ways_one_is_given_and_replaces_the_recipes_other() -> None:
    same, each = VDVAESamplingOptions(temperature=0.9), VDVAESamplingOptions(temperatures=(0.5, 0.6))
    assert sampling_of(each, "--temperature", "0.9") == same
    assert sampling_of(same, "--temperatures", "[0.5, 0.6]") == each
    assert sampling_of(each, "--draw-pixels", "false").temperatures == (0.5, 0.6)
    with pytest.raises(UserError, match=r"^--temperature and --temperatures: give one of them$"):
        sampling_of(same, "--temperatures", "[0.5, 0.6]", "--temperature", "0.8")
