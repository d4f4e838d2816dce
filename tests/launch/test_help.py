"""What --help prints."""

import argparse
import importlib

import pytest

from tests.runs_of import ROOT

COMMANDS = sorted(path.stem for path in (ROOT / "launch").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_word_of_a_command_is_explained_and_each_line_can_be_read(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[argparse.ArgumentParser] = []

    def print_help(parser: argparse.ArgumentParser) -> None:
        asked.append(parser)
        print(parser.format_help())

    monkeypatch.setattr(argparse.ArgumentParser, "print_help", print_help)
    monkeypatch.setattr("sys.argv", [f"launch/{name}.py"])
    with pytest.raises(SystemExit):
        importlib.import_module(f"launch.{name}").main(["--help"])
    assert [action.dest for action in asked[0]._actions if not action.help] == []
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {name}.py ")
    assert max(map(len, text.splitlines())) <= 128
