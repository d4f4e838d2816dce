"""A TorchScript file is a program: it runs if the command line named it, and never because a file did."""

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.features import scripts
from bigtrain.features.inception import InceptionFeatures
from bigtrain.features.opening import features_label, open_network
from bigtrain.features.scripts import stored_digest
from bigtrain.recipe import differences, evaluation_options, load_recipe
from tests.features.feature_files import TinyInception

CPU = torch.device("cpu")
OPTIMIZERS = {f"{name}_optimizer": {"lr": 0.1} for name in ("generator", "discriminator")}
MINIMAL = {"data": {"train": "digits"}, "family": {"kind": "gan"} | OPTIMIZERS, "train": {"steps": 1, "batch_size": 2}}


class Writing(nn.Module):
    """Writes a file when it is called, as a hostile network may."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        written = torch.from_file(self.path, True, 4)
        return images.float().mean([2, 3]) + 0 * written.fill_(1.0)[:1]


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the start of a process."""
    monkeypatch.setattr(scripts, "_named", {})
    monkeypatch.setattr(scripts, "_announced", set())


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A network that writes `written` beside itself."""
    return scripted(Writing(str(tmp_path / "written")), tmp_path / "net.pt")


def scripted(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(path)
    return path


def open_by(*words: str) -> None:
    options = evaluation_options(words)
    open_network(options.features, options.weights, (8, 8), CPU)


def write_recipe(path: Path, **evaluation: Any) -> Path:
    path.write_text(yaml.safe_dump(MINIMAL | {"evaluation": evaluation}))
    return path


@pytest.mark.parametrize("key", ["features", "classifier"])
def test_a_recipe_that_names_a_program_is_refused_and_so_are_those_that_extend_it(
    key: str, program: Path, tmp_path: Path
) -> None:
    parent = write_recipe(tmp_path / "parent.yaml", **{key: str(program)})
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\n")
    for path in (parent, tmp_path / "child.yaml"):
        with pytest.raises(UserError, match=rf"parent\.yaml: evaluation\.{key}: .*net\.pt.* is a program.*{key}=PATH"):
            load_recipe(path)


def test_a_run_that_names_a_program_by_its_path_opens_and_the_program_never_runs(program: Path, tmp_path: Path) -> None:
    """Earlier versions wrote such runs, which must still be sampled."""
    (tmp_path / "environment.json").write_text("{}")
    named = {"features": str(program), "classifier": str(program), "candidates": 2}
    recipe = load_recipe(write_recipe(tmp_path / "recipe.yaml", **named))
    assert (recipe.evaluation.features, recipe.evaluation.classifier) == ("torchscript:net.pt",) * 2
    with pytest.raises(UserError, match=r"evaluation\.features: net\.pt: .* program.*evaluation\.features=PATH"):
        open_network(recipe.evaluation.features, None, (8, 8), CPU)
    assert not (tmp_path / "written").exists()


def test_what_the_command_line_names_is_stored_by_name_and_sha256_and_runs(
    program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "a.yaml"), [f"evaluation.features={program}"])
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    stored = yaml.safe_load(recipe.to_yaml())["evaluation"]["features"]
    assert stored == f"torchscript:net.pt@{digest}"
    for _ in range(2):
        network = open_network(stored, None, (8, 8), CPU)
    assert (network.name, network.fingerprint) == ("net.pt", digest)
    assert features_label(stored) == features_label(str(program)) == "net"
    assert capsys.readouterr().err.count("net.pt is a TorchScript file, that is a program") == 1
    assert (tmp_path / "written").exists()


def test_a_stored_program_runs_only_if_the_command_line_names_it_again(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = load_recipe(write_recipe(tmp_path / "a.yaml"), [f"evaluation.features={program}"]).evaluation.features
    monkeypatch.setattr(scripts, "_named", {})
    again = write_recipe(tmp_path / "again.yaml", features=word)
    with pytest.raises(UserError, match=rf"net\.pt of sha256 {stored_digest(word)}: .* program.*features=PATH"):
        open_network(load_recipe(again).evaluation.features, None, (8, 8), CPU)
    named = load_recipe(again, [f"evaluation.features={program}"]).evaluation.features
    assert open_network(named, None, (8, 8), CPU).dimensions == 3


def test_another_program_of_the_same_name_is_refused_and_one_of_another_name_is_another_choice(
    program: Path, tmp_path: Path
) -> None:
    before = load_recipe(write_recipe(tmp_path / "a.yaml"), [f"evaluation.features={program}"])
    again = write_recipe(tmp_path / "again.yaml", features=before.evaluation.features)
    (tmp_path / "other").mkdir()
    other = scripted(TinyInception(), tmp_path / "other/net.pt")
    with pytest.raises(UserError, match=r"evaluation\.features: net\.pt has the sha256"):
        load_recipe(again, [f"evaluation.features={other}"])
    with pytest.raises(UserError, match=r"evaluation\.features: net\.pt has the sha256"):
        differences(before, load_recipe(tmp_path / "a.yaml", [f"evaluation.features={other}"]))
    renamed = other.rename(tmp_path / "other/tiny.pt")
    assert features_label(load_recipe(again, [f"evaluation.features={renamed}"]).evaluation.features) == "tiny"


def test_a_program_that_changes_after_it_was_named_does_not_run(program: Path, tmp_path: Path) -> None:
    word = evaluation_options([f"evaluation.features={program}"]).features
    scripted(TinyInception(), program)
    with pytest.raises(UserError, match="was changed"):
        open_network(word, None, (8, 8), CPU)


def test_weights_that_are_a_program_of_others_are_taken_from_the_command_line_only(tmp_path: Path) -> None:
    path = scripted(TinyInception(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"evaluation\.weights: .*weights\.pt: a TorchScript file is a program"):
        InceptionFeatures("clean", str(path), CPU)
    options = evaluation_options(["evaluation.features=clean", f"evaluation.weights={path}"])
    assert InceptionFeatures("clean", options.weights, CPU).dimensions == 16


@pytest.mark.parametrize("key", ["features", "classifier", "weights"])
def test_a_fifo_or_a_device_is_not_waited_for(key: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.pt")
    for path in (tmp_path / "net.pt", Path("/dev/zero")):
        with pytest.raises(UserError, match=rf"evaluation\.{key}: .*(net\.pt|zero): is a (FIFO|device)"):
            open_by("evaluation.features=clean", f"evaluation.{key}={path}")


def test_a_word_that_names_nothing_says_what_there_is() -> None:
    with pytest.raises(UserError, match=r"evaluation\.features: clasifier: neither a file nor classifier, clean"):
        evaluation_options(["evaluation.features=clasifier"])
