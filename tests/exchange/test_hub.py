"""The Hub, which no test reaches: what is asked of its library is recorded, and what it would give comes from a folder."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import yaml
from diffusers import DDPMPipeline, DiffusionPipeline
from huggingface_hub import ModelCard
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

import bigtrain
from bigtrain import progress
from bigtrain.errors import UserError
from bigtrain.exchange import hub
from bigtrain.exchange.card import Card
from bigtrain.exchange.export import Usage
from bigtrain.inference.initial_weights import _open
from launch.evaluate import main as evaluate
from launch.export import main as export
from launch.sample import main as sample

OLD = Path(__file__).parents[1] / "fixtures" / "a3de763"
EXPORTED = {
    "README.md", "evaluation.json", "manifest.json", "model_index.json", "pipeline.py", "provenance.json", "recipe.yaml",
}  # fmt: skip


def without_response(failure: type[Exception], text: str) -> Exception:
    """Those of the Hub want the response of a server."""
    made = failure.__new__(failure, text)
    made.args = (text,)
    return made


class RecordedHub:
    """In the place of huggingface_hub.HfApi and snapshot_download: records the calls, and keeps what is uploaded."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, list[tuple[str, dict[str, Any]]]()
        self.private: dict[str, bool] = {}

    def repo_info(self, repo_id: str, **more: Any) -> Any:
        self.calls.append(("repo_info", {"repo_id": repo_id, **more}))
        if repo_id not in self.private:
            raise without_response(RepositoryNotFoundError, "404")
        return SimpleNamespace(private=self.private[repo_id])

    def create_repo(self, repo_id: str, **more: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **more}))
        self.private.setdefault(repo_id, more["private"])
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, **call: Any) -> None:
        self.calls.append(("upload_folder", call))
        for name in call["allow_patterns"]:
            to = self.folder / call["repo_id"] / name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(call["folder_path"]) / name, to)

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        """As the Hub's cache has it: links to files."""
        self.calls.append(("snapshot_download", {"repo_id": repo_id, "revision": revision}))
        snapshot = self.folder / "snapshots" / repo_id
        source = self.folder / repo_id
        for pattern in allow_patterns:
            for path in source.glob(pattern):
                link = snapshot / path.relative_to(source)
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to(path)
        return str(snapshot)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordedHub:
    there = RecordedHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: there)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", there.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.chdir(OLD)
    return there


@pytest.fixture
def pushed(recorded: RecordedHub, tmp_path: Path) -> RecordedHub:
    for family in ("gan", "ddpm"):
        export([f"runs/{family}", str(tmp_path / family), "--push", f"someone/{family}"])
    return recorded


def test_an_export_is_pushed_into_a_private_repository_with_its_card(
    recorded: RecordedHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(["runs/ddpm", str(tmp_path / "out"), "--push", "someone/tiny-ddpm"])
    called = dict(recorded.calls)
    assert [name for name, _ in recorded.calls] == ["repo_info", "create_repo", "upload_folder"]
    assert called["create_repo"] == {
        "repo_id": "someone/tiny-ddpm", "repo_type": "model", "private": True, "exist_ok": True,
    }  # fmt: skip
    names = set(called["upload_folder"]["allow_patterns"])
    assert {name for name in names if "/" not in name} - {"samples.png"} == EXPORTED
    assert {"unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"} <= names
    said = capsys.readouterr().err
    assert "pushed" in said
    assert "for you alone" in said
    assert "DDPMPipeline.from_pretrained('someone/tiny-ddpm')" in said


def test_a_long_upload_is_a_line_a_minute_in_a_log(
    recorded: RecordedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars, upload = list[bool](), recorded.upload_folder

    def slow(**call: Any) -> None:
        bars.append(are_progress_bars_disabled())
        time.sleep(0.5)
        upload(**call)

    monkeypatch.setattr(progress, "LINE_S", 0.2)
    monkeypatch.setattr(recorded, "upload_folder", slow)
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text("x" * 3_000_000)
    hub.push(folder, "me/slow", public=False, message="m")
    said = capsys.readouterr().err.splitlines()
    assert said == ["uploads 1 files, 3.0 MB, to me/slow: 0 min so far"] * 2
    assert bars == [True]
    assert not are_progress_bars_disabled()


def test_public_makes_a_public_repository(recorded: RecordedHub, tmp_path: Path) -> None:
    export(["runs/gan", str(tmp_path / "out"), "--push", "someone/gan", "--public"])
    assert dict(recorded.calls)["create_repo"]["private"] is False


def test_a_dry_run_lists_files_and_sizes_and_asks_nothing_of_the_hub(
    recorded: RecordedHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(["runs/ddpm", str(tmp_path / "out"), "--push", "someone/ddpm", "--dry-run"])
    assert recorded.calls == []
    said = capsys.readouterr().err
    size = (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert f"{size:,} bytes  unet/diffusion_pytorch_model.safetensors" in said
    assert "nothing was uploaded" in said


@pytest.mark.parametrize(
    "name", ["ddpm", "a/b/c", "a/b c", "-a/b", "a/b-", "a/..", "a/x--y", "https://hf.co/a/b", f"a/{'b' * 99}"]
)
def test_a_name_that_is_none_of_the_hub_is_one_sentence(recorded: RecordedHub, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"^--push: .* is no name of a model on the Hub; it is OWNER/NAME"):
        export(["runs/ddpm", str(tmp_path / "out"), f"--push={name}"])
    assert not (tmp_path / "out").exists()


def test_nothing_is_shown_to_all_by_accident(recorded: RecordedHub, tmp_path: Path) -> None:
    recorded.private["someone/ddpm"] = False
    with pytest.raises(UserError, match="is public on the Hub, and without --public nothing is shown"):
        export(["runs/ddpm", str(tmp_path / "out"), "--push", "someone/ddpm"])
    assert not (tmp_path / "out").exists()


def test_without_a_token_nothing_is_exported(
    recorded: RecordedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="there is no token for the Hub; run `hf auth login`, or set HF_TOKEN"):
        export(["runs/ddpm", str(tmp_path / "out"), "--push", "someone/ddpm"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--public", "--dry-run"])
def test_a_flag_of_an_upload_without_one_is_one_sentence(flag: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{flag}: is of an upload; give --push OWNER/NAME as well"):
        export([str(OLD / "runs" / "ddpm"), str(tmp_path / "out"), flag])


# -- the card -------------------------------------------------------------------------------------------------------


def test_the_card_is_one_that_the_hub_reads(pushed: RecordedHub) -> None:
    card = ModelCard.load(pushed.folder / "someone" / "ddpm" / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert {"bigtrain", "diffusion"} <= set(card.data.tags)
    head = (pushed.folder / "someone" / "ddpm" / "README.md").read_text().split("---")[1]
    assert "# license: to fill in" in head
    assert "# datasets: to fill in" in head


def test_the_card_has_the_evaluation_with_its_protocol_and_the_recipe(pushed: RecordedHub) -> None:
    folder = pushed.folder / "someone" / "ddpm"
    text = (folder / "README.md").read_text()
    result = json.loads((OLD / "runs" / "ddpm" / "evaluations" / "step_00000002.json").read_text())
    assert f"| <code>bits_per_dim</code> | {result['bits_per_dim']:.6g} |" in text
    assert json.dumps(result["protocol"], indent=2) in text
    recipe = text.partition("```yaml\n")[2].partition("\n```")[0]
    assert yaml.safe_load(recipe) == yaml.safe_load((folder / "recipe.yaml").read_text())


def test_the_lines_of_a_card_load_what_was_pushed(pushed: RecordedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pushed.folder)  # OWNER/NAME is a folder there, which diffusers takes as it takes a repository
    for family, pipeline, side in (("ddpm", DDPMPipeline, 8), ("gan", DiffusionPipeline, 16)):
        code = (pushed.folder / "someone" / family / "README.md").read_text().partition("```python\n")[2]
        lines = code.partition("\n```")[0].splitlines()
        assert len(lines) == 3
        assert lines[0] == f"from diffusers import {pipeline.__name__}"
        values: dict[str, Any] = {}
        exec("\n".join(lines), values)
        assert values["images"][0].size == (side, side)


PLAIN = """
import sys
sys.path.append(sys.argv[1])  # the packages, without what .pth files there add
from importlib.util import find_spec
assert find_spec("bigtrain") is None
from diffusers import DDPMPipeline
pipeline = DDPMPipeline.from_pretrained("someone/ddpm")
images = pipeline(batch_size=2, num_inference_steps=5).images
assert [image.size for image in images] == [(8, 8)] * 2
"""
OURS = """
import numpy
from diffusers import DiffusionPipeline
for name, given in (("gan", {"class_labels": [0, 1]}), ("ddpm", {"count": 2, "seed": 0})):
    custom = {"custom_pipeline": f"someone/{name}"} if name == "ddpm" else {}
    pipeline = DiffusionPipeline.from_pretrained(f"someone/{name}", trust_remote_code=True, **custom)
    numpy.save(f"{name}.npy", [numpy.asarray(image) for image in pipeline(**{"seed": 0} | given).images])
"""


@pytest.mark.slow
def test_what_was_pushed_loads_in_fresh_environments(pushed: RecordedHub, tmp_path: Path) -> None:
    """Of diffusers alone, and of an installed bigtrain: processes of their own, with empty caches."""

    def fresh(cache: str, *command: str, **more: str) -> None:
        variables = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
        variables |= {"HF_HOME": str(tmp_path / cache), "HF_HUB_OFFLINE": "1", **more}
        subprocess.run([sys.executable, *command], cwd=pushed.folder, env=variables, check=True, timeout=300)

    fresh("plain", "-I", "-S", "-c", PLAIN, str(Path(diffusers.__file__).parents[1]))
    fresh("ours", "-c", OURS, PYTHONPATH=str(Path(bigtrain.__file__).parents[1]))
    for family in ("gan", "ddpm"):
        wanted = ["--classes", "0,1", "--per-class", "1"] if family == "gan" else ["--per-class", "2"]
        sample([f"runs/{family}", "--npz", str(tmp_path / "run.npz"), "--seed", "0", *wanted])
        drawn, of_run = np.load(pushed.folder / f"{family}.npy"), np.load(tmp_path / "run.npz")["arr_0"]
        assert np.array_equal(drawn, of_run[:2].reshape(drawn.shape)), family


def card(**changes: Any) -> str:
    spec = SimpleNamespace(classes=("<b>a|b</b>`", "x\nz"), class_counts=(1, 2), channels=3, size=(8, 8))
    family = SimpleNamespace(kind="gan", spec=spec, ability=lambda _: None)
    facts: Mapping[str, Any] = {
        "title": "small", "family": family, "recipe_yaml": "a: b\n", "provenance": {"step": 2, "weights": "ema"},
        "usages": [Usage("DiffusionPipeline", "'a/b'", "count=1", plain=False)], "evaluation": None, "picture": None,
    }  # fmt: skip
    return Card(**{**facts, **changes}).text()


def test_names_in_a_card_are_no_markup() -> None:
    text = card()
    assert "<b>" not in text
    assert "<code>&lt;b&gt;a&#124;b&lt;/b&gt;&#96;</code>" in text
    assert "x\nz" not in text


def test_a_recipe_cannot_end_its_block_of_code() -> None:
    text = card(recipe_yaml="run: {dir: '```\n# a heading'}\n")
    assert "````yaml\nrun: {dir: '```\n# a heading'}\n````" in text


# -- from the Hub ---------------------------------------------------------------------------------------------------


def test_samples_of_a_pushed_model_are_those_of_its_export(pushed: RecordedHub, tmp_path: Path) -> None:
    arguments = ["--per-class", "2"]
    sample(["hf://someone/gan@main", "--npz", str(tmp_path / "there.npz"), *arguments])
    sample([str(tmp_path / "gan"), "--npz", str(tmp_path / "here.npz"), *arguments])
    assert pushed.calls[-1] == ("snapshot_download", {"repo_id": "someone/gan", "revision": "main"})
    assert (tmp_path / "there.npz").read_bytes() == (tmp_path / "here.npz").read_bytes()
    assert not list((pushed.folder / "snapshots").rglob("README.md")), "only an export's files are fetched"


def test_training_begins_from_a_pushed_model(pushed: RecordedHub) -> None:
    source = _open("hf://someone/gan", "ema")
    assert source.facts == {"step": 4, "weights": "ema"}
    assert pushed.calls[-1] == ("snapshot_download", {"repo_id": "someone/gan", "revision": None})


def test_an_evaluation_of_a_pushed_model_is_written_where_the_user_says(pushed: RecordedHub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^hf://someone/ddpm: is on the Hub, and .* give --out FILE.json"):
        evaluate(["hf://someone/ddpm"])
    with pytest.raises(UserError, match=r"^--sweep: hf://someone/ddpm is on the Hub"):
        evaluate(["hf://someone/ddpm", "--sweep", "family.sampling.steps=2,3"])


@pytest.mark.parametrize(
    "word", ["hf://a/b@", "hf://a/b@x/../y", "hf://a", "hf://a/b/c", "hf://a b/c", "hf://datasets/a/b"]
)
def test_what_is_no_model_of_the_hub_is_one_sentence(word: str) -> None:
    with pytest.raises(UserError, match="not a model on the Hub; it is hf://OWNER/NAME or hf://OWNER/NAME@REVISION"):
        hub.local(word)


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (RepositoryNotFoundError, "is not on the Hub, or it is private"),
        (RevisionNotFoundError, "has no such revision"),
        (GatedRepoError, "is gated; ask for access"),
        (LocalEntryNotFoundError, "the Hub is not reached"),
        (HfHubHTTPError, "the Hub could not be used (HfHubHTTPError: no route"),
        (OSError, "the Hub could not be used (OSError: no route"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    failure: type[Exception], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise without_response(failure, "no route\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError) as caught:
        hub.local("hf://a/b@v1")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
