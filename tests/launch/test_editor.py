"""The schema in an editor: the YAML language server, driven by its protocol, completes keys and says what they mean."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs_of import ROOT

SERVER = "yaml-language-server@1.25.0"
FIRST_LINE = "# yaml-language-server: $schema=schema.json\n"
REPLY_S = 60

pytestmark = pytest.mark.slow


class LanguageServer:
    """Speaks the Language Server Protocol (version 3.17) over stdin and stdout: JSON-RPC behind a header of its length."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._process = subprocess.Popen(["timeout", str(REPLY_S), *command], stdin=-1, stdout=-1)
        self._folder, self._asked = folder, 0
        self.problems: dict[str, list[str]] = {}
        capabilities = {"workspace": {"configuration": True}}
        self.ask("initialize", {"processId": os.getpid(), "rootUri": folder.as_uri(), "capabilities": capabilities})
        self._send({"method": "initialized", "params": {}})

    def open(self, name: str, text: str) -> dict[str, str]:
        """What the protocol calls a text document."""
        document = {"uri": (self._folder / name).as_uri()}
        opened = document | {"languageId": "yaml", "version": 1, "text": text}
        self._send({"method": "textDocument/didOpen", "params": {"textDocument": opened}})
        return document

    def ask(self, method: str, params: Any) -> Any:
        self._asked += 1
        self._send({"id": self._asked, "method": method, "params": params})
        while True:
            message = self._read()
            if "method" not in message and message["id"] == self._asked:
                return message["result"]
            self._answer(message)

    def wait_for_problems(self, document: dict[str, str]) -> list[str]:
        """Of a document, once they are published."""
        while document["uri"] not in self.problems:
            self._answer(self._read())
        return self.problems[document["uri"]]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self, message: Any) -> None:
        if message["method"] == "textDocument/publishDiagnostics":
            found = message["params"]
            self.problems[found["uri"]] = [problem["message"] for problem in found["diagnostics"]]
        elif "id" in message:
            settings = {"completion": True, "validate": True, "hover": True, "schemaStore": {"enable": False}}
            asked = message["params"].get("items", ())
            result = [settings if item.get("section") == "yaml" else {} for item in asked]
            self._send({"id": message["id"], "result": result})

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        content = json.dumps({"jsonrpc": "2.0"} | message).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(content), content))
        self._process.stdin.flush()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        length = 0
        while line := self._process.stdout.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        assert length, f"the server gave no reply within {REPLY_S} s"
        return json.loads(self._process.stdout.read(length))


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm run the YAML language server, and are not installed")
    folder = tmp_path_factory.mktemp("npm")
    installed = subprocess.run(["npm", "install", "--prefix", folder, SERVER], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm cannot install {SERVER}: {installed.stderr.splitlines()[-1:]}")
    return [str(folder / "node_modules" / ".bin" / "yaml-language-server"), "--stdio"]


@pytest.fixture
def server(command: list[str], tmp_path: Path) -> Iterator[LanguageServer]:
    shutil.copy(ROOT / "recipes" / "schema.json", tmp_path)
    opened = LanguageServer(command, tmp_path)
    yield opened
    opened.close()


def completions(server: LanguageServer, text: str) -> dict[str, str]:
    """The documentation of what the server offers at the end of a recipe, by label."""
    lines = (FIRST_LINE + text).split("\n")
    at = {"line": len(lines) - 1, "character": len(lines[-1])}
    reply = server.ask(
        "textDocument/completion", {"textDocument": server.open("mine.yaml", FIRST_LINE + text), "position": at}
    )
    offered = reply["items"] if isinstance(reply, dict) else reply
    return {item["label"]: str(item.get("documentation")) for item in offered}


def test_the_keys_of_a_generator_are_completed_with_their_docstrings(server: LanguageServer) -> None:
    offered = completions(server, "family:\n  kind: gan\n  generator:\n    ")
    assert offered["channels"].startswith("The base width, which the table for the resolution multiplies.")
    assert "attention_resolution" in offered
    assert "unet" not in offered


def test_the_keys_of_a_kind_are_those_of_its_class(server: LanguageServer) -> None:
    offered = completions(server, "extends: other.yaml\nfamily:\n  kind: gan\n  generator:\n    kind: dcgan\n    ")
    assert offered["channels"].startswith("Features of the last layer before the image")
    assert "attention_resolution" not in offered


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train:\n  precision: ", {"fp32", "tf32", "bf16"}),
        ("family:\n  kind: ", {"gan", "diffusion", "vqvae", "prior"}),
        ("family:\n  kind: gan\n  objective:\n    kind: ", {"hinge", "non_saturating", "wasserstein"}),
        ("", {"extends", "run", "data", "family", "train"}),
    ],
)
def test_sections_and_words_are_completed(server: LanguageServer, text: str, words: set[str]) -> None:
    assert words <= completions(server, text).keys()


def test_hovering_over_a_key_says_its_docstring(server: LanguageServer) -> None:
    document = server.open("mine.yaml", f"{FIRST_LINE}train:\n  batch_size: 64\n")
    at = {"line": 2, "character": 4}
    reply = server.ask("textDocument/hover", {"textDocument": document, "position": at})
    assert "Images per update, over all ranks and microbatches" in reply["contents"]["value"]


def test_shipped_recipes_have_no_problems_and_wrong_ones_are_marked(server: LanguageServer) -> None:
    shipped = (ROOT / "recipes" / "biggan_digits.yaml").read_text()
    assert server.wait_for_problems(server.open("shipped.yaml", shipped)) == []
    wrong = server.open("wrong.yaml", f"{FIRST_LINE}train:\n  stepz: 3\n")
    assert any("stepz" in problem for problem in server.wait_for_problems(wrong))
