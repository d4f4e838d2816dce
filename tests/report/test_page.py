"""The page of runs: what it says, how large it is, and that nothing in a run folder becomes a part of it but as text."""

import json
import os
import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bigtrain.report
from bigtrain.errors import UserError
from bigtrain.report.page import MOST_BYTES, report
from bigtrain.report.pictures import MOST_PICTURES, PictureFile, encode
from bigtrain.runs import atomic
from launch.report import main
from tests.report.report_runs import RECIPE, evaluation, make_run, picture, row, warning

HOSTILE = "</script></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'`&amp;\x1b[31m\u202e"


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.pieces)

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def text_of(*runs: Path) -> str:
    return Elements(report(runs)).text


def content_of(page: str) -> dict[str, Any]:
    match = re.search(r'id="content">(.*?)</script>', page)
    assert match is not None
    content: dict[str, Any] = json.loads(match[1])
    return content


def test_everything_that_a_run_has_is_on_its_page(tmp_path: Path) -> None:
    text = text_of(make_run(tmp_path / "small"))
    for said in ("small", "40 of 40", "320", "0:00:20", "2 × NVIDIA H200", "81ab8bd764", "a jump", "gradient_norm/vae"):
        assert said in text
    for said in (
        "fd_classifier",
        "3.5",
        "0.75 (-0.093 +0.075)",
        "classifier (features)",
        "optimizer.lr",
        "0.002",
        "2.14.1",
    ):
        assert said in text


def test_hostile_text_anywhere_in_a_run_stays_text(tmp_path: Path) -> None:
    """In the folder's name, keys and values of the recipe, the environment, rows, warnings, protocols and files' names."""
    name = HOSTILE.replace("/", "_")
    run = make_run(
        tmp_path / name,
        rows=[row(1, **{HOSTILE: 1.0, f"loss/{HOSTILE}": 2.0}), row(2, **{HOSTILE: 2.0}), warning(1, HOSTILE)],
        recipe=RECIPE | {"family": {"kind": HOSTILE.replace("\x1b", ""), HOSTILE.replace("\x1b", ""): 1}},
        environment={HOSTILE: HOSTILE, "commit": HOSTILE, "device": HOSTILE, "world_size": HOSTILE,
                     "starts": [{"step": 1, "when": HOSTILE}],
                     "extends": {"recipe": HOSTILE, "changed": [f"{HOSTILE}: 1 -> {HOSTILE}"]},
                     "went_on_from": {"step": HOSTILE, "source": HOSTILE}, "initial_weights": {HOSTILE: {HOSTILE: HOSTILE}}},
        pictures={f"samples/{name}{end}.png": picture(0) for end in ("", "_step_3", "_step_4")},
        evaluations={1: evaluation(1, 0.5, **{HOSTILE: HOSTILE}) | {HOSTILE: 0.5}, 2: evaluation(2, 0.5) | {HOSTILE: 0.25}},
    )  # fmt: skip
    (run / "samples" / f"{name}_step_9.png").write_text(HOSTILE)
    (run / "evaluations" / "step_00000009.json").write_text(HOSTILE)
    other = make_run(tmp_path / "other")
    for page in (report([run]), report([run, other])):
        assert_has_no_script_but_its_own(page)
        assert "alert(1)" in Elements(page).text
        assert "\x1b" not in page
        assert "\u202e" not in page


def assert_has_no_script_but_its_own(page: str) -> None:
    found = Elements(page)
    assert [attributes.get("id") for attributes in found.named("script")] == ["content", None, None]
    assert len(found.named("style")) == 1
    # Nothing is painted before the script of that name, at the end, is parsed.
    assert found.named("link") == [{"rel": "expect", "href": "#content", "blocking": "render"}]
    assert {(attributes["src"] or "").partition(",")[0] for attributes in found.named("img")} <= {
        "data:image/webp;base64"
    }
    for tag, attributes in found.elements:
        assert not [key for key in attributes if key.startswith("on") or key == "style"], (tag, attributes)
        assert tag not in ("iframe", "object", "embed", "base", "svg")
        assert not (attributes.get("href") or "#").startswith(("http", "//", "javascript"))


def test_the_page_names_no_other_place(tmp_path: Path) -> None:
    page = report([make_run(tmp_path / "small")])
    (policy,) = [each["content"] for each in Elements(page).named("meta") if each.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page)


def test_of_several_runs_the_keys_that_differ_come_first(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one")
    other = make_run(tmp_path / "other", recipe=RECIPE | {"train": {"steps": 80, "batch_size": 8}})
    text = text_of(one, other)
    assert "1 of 7 keys that all runs have differ." in text
    assert text.index("train.steps") < text.index("6 keys that are the same") < text.index("train.batch_size")


def test_what_differs_from_a_parent_is_said(tmp_path: Path) -> None:
    told = {
        "extends": {"recipe": "recipes/base.yaml", "changed": ["train.steps: 100 -> 40"]},
        "went_on_from": {"source": "/runs/before", "step": 20, "changed": ["train.batch_size: 4 -> 8"]},
        "starts": [{"step": 0, "when": "2026-11-29 08:00"}, {"step": 20, "when": "2026-11-29 09:00"}],
    }
    run = make_run(tmp_path / "small", environment=told)
    text = text_of(run)
    for said in ("It extends recipes/base.yaml, and changes:", "It goes on from step 20 of /runs/before, and changes:"):
        assert said.partition(",")[0] in text
    assert re.search(r"train\.batch_size\W+4\W+8\W", text)
    assert "Started again, from a checkpoint, at step 20 (2026-11-29 09:00)." in text
    assert content_of(report([run]))["runs"][0]["starts"] == [20]


def test_runs_of_different_families_are_told_apart(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one")
    other = make_run(tmp_path / "other", recipe=RECIPE | {"family": {"kind": "gan"}})
    assert "These runs are of different families (vae, gan)" in text_of(one, other)


def test_runs_of_one_name_are_told_apart_by_the_folder_around_them(tmp_path: Path) -> None:
    text = text_of(make_run(tmp_path / "a" / "small"), make_run(tmp_path / "b" / "small"))
    assert "a/small" in text
    assert "b/small" in text


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("metrics.jsonl", "There is no metrics.jsonl"),
        ("recipe.yaml", "recipe.yaml is missing"),
        ("environment.json", "environment.json is missing"),
    ],
)
def test_a_part_that_is_missing_is_a_sentence(lost: str, said: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "small")
    (run / lost).unlink()
    assert said in text_of(run)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "\x00", "[" * 100_000, "&a [*a]"])
def test_damaged_files_are_a_sentence_each(content: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "small")
    for name in ("recipe.yaml", "environment.json", "evaluations/step_00000020.json", "samples/step_00000020.png"):
        (run / name).write_text(content)
    text = text_of(run)
    for said in ("recipe.yaml ", "environment.json ", "step_00000020.json: ", "step_00000020.png: "):
        assert said in text
    assert "0.75" in text  # the evaluation that is whole


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "small")
    for name in ("recipe.yaml", "environment.json", "metrics.jsonl", "evaluations/step_00000020.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
    os.mkfifo(run / "samples" / "step_00000030.png")
    (run / "recipe.yaml").unlink()
    (run / "recipe.yaml").write_text("train: {steps: 40}")
    text = text_of(run)
    assert "metrics.jsonl cannot be read" in text
    assert "environment.json cannot be read" in text


@pytest.mark.parametrize(
    "name", ["environment.json", "samples/step_00000020.png", "evaluations/step_00000020.json", "a.png"]
)
def test_what_a_link_leads_to_is_in_no_page(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "small")
    (tmp_path / "own").write_text('{"password": "mine"}')
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "own")
    with pytest.raises(UserError, match=f"{name}: is a link, and what it leads to would be in the page"):
        report([run])


def test_logins_within_urls_are_in_no_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "small", recipe=RECIPE | {"data": {"train": ["https://me:secret@host/train.json"]}})
    page = report([run])
    assert "secret" not in page
    assert "https://…@host/train.json" in page


def test_half_of_a_row_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "small")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "los')
    assert "One line of metrics.jsonl is no whole row, and is left out" in text_of(run)


# -- size and pictures ----------------------------------------------------------------------------------------------------


def test_pictures_that_fit_are_shown_pixel_by_pixel(tmp_path: Path) -> None:
    image = picture(3)
    image.save(tmp_path / "step_1.png")
    encoded = encode(PictureFile(tmp_path / "step_1.png", "samples", 1))
    (tmp_path / "step_1.webp").write_bytes(encoded.data)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "step_1.webp").convert("RGB")), np.asarray(image))


@pytest.mark.slow
def test_a_page_of_twenty_large_pictures_has_at_most_five_megabytes_and_says_so(tmp_path: Path) -> None:
    noise = {f"samples/step_{step:08d}.png": picture(step, 640) for step in range(20)}
    page = report([make_run(tmp_path / "small", pictures=noise)])
    assert 2_000_000 < len(page.encode()) <= MOST_BYTES
    assert "To keep this page small, pictures are stored" in page
    assert len(content_of(page)["pictures"][0]) == 20


def test_of_very_many_pictures_the_first_and_the_last_are_shown(tmp_path: Path) -> None:
    many = {f"samples/step_{step:08d}.png": picture(step, 4) for step in range(3 * MOST_PICTURES)}
    page = report([make_run(tmp_path / "small", pictures=many)])
    steps = [each["step"] for each in content_of(page)["pictures"][0]]
    assert len(steps) == MOST_PICTURES
    assert (steps[0], steps[-1]) == (0, 3 * MOST_PICTURES - 1)
    assert f"Of {3 * MOST_PICTURES} pictures {MOST_PICTURES} are shown" in page


def test_pictures_of_other_kinds_have_sliders_and_places_of_their_own(tmp_path: Path) -> None:
    frames = [picture(number, 8) for number in range(3)]
    run = make_run(
        tmp_path / "small",
        pictures={
            "samples/traversals_step_10.png": picture(0),
            "samples/traversals_step_20.png": picture(1),
            "samples/step_00000020.png": picture(2),
            "reconstructions.png": picture(3),
            "evaluations/step_00000020_neighbours.png": picture(4),
        },
    )
    frames[0].save(run / "samples" / "film.gif", save_all=True, append_images=frames[1:])
    page = report([run])
    groups = {each["group"] for each in content_of(page)["pictures"][0]}
    assert groups == {"samples", "traversals"}
    text = Elements(page).text
    for name in ("reconstructions.png", "film.gif", "step_00000020_neighbours.png"):
        assert name in text
    (run / "film.webp").write_bytes(encode(PictureFile(run / "samples" / "film.gif", "samples", None)).data)
    assert getattr(Image.open(run / "film.webp"), "n_frames", 1) == 3


def test_small_runs_with_thousands_of_rows_make_small_pages(tmp_path: Path) -> None:
    rows = [row(step, **{f"loss/vae/{term}": float(step % 97) for term in range(20)}) for step in range(5000)]
    assert len(report([make_run(tmp_path / "small", rows=rows)])) < 1_000_000


# -- the command ------------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = make_run(tmp_path / "small"), tmp_path / "report.html"
    for _ in range(2):  # the page of before is replaced
        main([str(run), "--out", str(out)])
    assert out.read_text().startswith("<!doctype html>")
    assert f"the page: {out}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "--out", "page.html"], "there is no such folder"),
        (["empty", "--out", "page.html"], "is neither a run folder nor an export"),
        (["export", "--out", "page.html"], "is an export, which has no metrics"),
        (["small", "small/../small", "--out", "page.html"], "is the same run as small"),
        (["small", "--out", "small/recipe.yaml"], "is not named as a page"),
        (["small", "--out", "nowhere/page.html"], "there is no folder nowhere"),
        (["small", "--out", "folder.html"], "is a folder, which is not replaced"),
        (["small", "--out", "link.html"], "is a link, which is not replaced"),
        (["small/checkpoints", "--out", "page.html"], "lies in the run small"),
    ],
)
def test_mistakes_are_a_sentence(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("small"))
    for name in ("empty", "export", "folder.html", "small/checkpoints"):
        Path(name).mkdir()
    Path("export/model_index.json").write_text("{}")
    Path("link.html").symlink_to("small/recipe.yaml")
    with pytest.raises(UserError, match=re.escape(said)):
        main(words)
    assert not Path("page.html").exists()


def test_pip_installs_everything_that_a_page_is_made_of() -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["bigtrain.report"]
    folder = Path(bigtrain.report.__file__).parent
    others = [str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.suffix not in (".py", ".pyc")]
    assert "assets/uPlot.LICENSE" in others
    assert [name for name in others if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_uplot_is_as_npm_has_it() -> None:
    folder = Path(bigtrain.report.__file__).parent / "assets"
    digests = {path.name: atomic.sha256_of(path) for path in folder.glob("uPlot.*.*")}
    assert digests == {
        "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    }
