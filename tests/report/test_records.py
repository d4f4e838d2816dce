"""What a training records of itself for its page: which recipe its own one extends, and where it was started again."""

import json
import re
from pathlib import Path

import pytest

from bigtrain.report.page import report
from bigtrain.runs.folder import RUN, RunFolder
from tests.report.test_page import Elements
from tests.runs_of import FAMILIES, train, write_recipe


@pytest.mark.slow
def test_a_run_records_what_differs_from_the_parent_of_its_recipe_and_its_starts(tmp_path: Path) -> None:
    parent = write_recipe(tmp_path, FAMILIES["gan"], steps=2)
    recipe = tmp_path / "child.yaml"
    recipe.write_text(f"extends: {parent.name}\ntrain: {{batch_size: 4}}\n")
    for steps in (2, 4, 4):
        train(recipe, f"train.steps={steps}", "family.generator_optimizer.lr=1e-4")
    recorded = json.loads((tmp_path / "run" / "environment.json").read_text())
    changed = ["family.generator_optimizer.lr: 0.005 -> 0.0001", "train.batch_size: 8 -> 4"]
    assert recorded["extends"] == {"recipe": str(parent), "changed": changed}
    assert [start["step"] for start in recorded["starts"]] == [0, 2]
    text = Elements(report([tmp_path / "run"])).text
    assert f"It extends {parent}" in text
    assert re.search(r"train\.batch_size\W+8\W+4\W", text)
    assert re.search(r"Started again, from a checkpoint, at step 2 \(\d{4}-\d\d-\d\d \d\d:\d\d UTC\)\.", text)


def test_the_newest_starts_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.claim(b"")
    folder.record_start(0)
    assert not folder.environment.exists()  # no record to add to
    folder.environment.write_text(json.dumps({"versions": {}, RUN: folder.run, "starts": [{"step": 1}] * 1500}))
    folder.record_start(7)
    starts = json.loads(folder.environment.read_text())["starts"]
    assert len(starts) == 1000
    assert starts[-1]["step"] == 7
