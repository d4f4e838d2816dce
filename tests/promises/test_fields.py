"""A run over every kind of field at once: the same on one rank and on two, and after SIGKILL in the middle of an epoch."""

import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from bigtrain.data.fields.codes import CodesField
from bigtrain.data.index import Index
from tests.data.field_shards import make_shards, npy
from tests.data.fields.test_kinds import ALL, SAMPLES
from tests.promises.comparing import assert_close, assert_same_bits
from tests.promises.test_kills import await_progress
from tests.runs_of import Run, check, launch, logged, start_training

KINDS = ["image", "map", "text", "array of various lengths", "attributes", "label"]
"""Those of ALL that go together in one sample; a clip and codes are added."""
STEPS, BATCH = 9, 4


@pytest.fixture
def every_kind(tmp_path: Path) -> Index:
    chosen = [ALL[name] for name in KINDS]
    fields = {kind.field.name: kind.field for kind in chosen}
    clip = ALL["clip of frames"]
    fields["clip"] = type(clip.field)("clip", tuple(f"clip.{m}" for m in clip.field.members), (6, 4), 3, 5, 12.0)
    fields["codes"] = CodesField("codes", ("codes.npy",), 50, (2, 3), 2)
    codes = np.random.default_rng(1).integers(0, 50, (SAMPLES, 2, 2, 3)).astype("<u2")
    contents = []
    for number in range(SAMPLES):
        sample = {member: data for kind in chosen for member, data in kind.contents[number].items()}
        sample |= {f"clip.{member}": data for member, data in clip.contents[number].items()}
        contents.append(sample | {"codes.npy": npy(codes[number])})
    return make_shards(tmp_path / "shards", fields, contents, ALL["label"].values["label"].tolist())


def recipe(folder: Path, index: Index, **train: object) -> Path:
    folder.mkdir(parents=True)
    data = {
        "train": str(index.path), "image_size": [4, 2], "crop_from": [6, 4], "flip": True, "frames": 3, "shuffle_shards": 2,
        "text": {"length": 9}, "workers": 1, "derive": {"lines": {"kind": "edges", "of": "picture"}},
    }  # fmt: skip
    content = {
        "run": {"name": "fields", "dir": str(folder / "run")},
        "data": data,
        "family": {"kind": "field_reader"},
        "train": {"steps": STEPS, "batch_size": BATCH, "log_every": 1, "save_every": 1} | train,
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return folder / "small.yaml"


def test_two_ranks_read_what_one_reads(every_kind: Index, tmp_path: Path, forks: None) -> None:
    for ranks, name in ((1, "one"), (2, "two")):
        launch([Run(tmp_path / name, (recipe(tmp_path / name / "recipe", every_kind),), float64=True)], ranks)
        check(tmp_path / name)
    one, two = (tmp_path / name / "recipe" for name in ("one", "two"))
    assert len({row["loss/net"] for row in logged(one / "run")}) == STEPS
    assert_close(one, two, 1e-9)


def test_a_kill_in_the_middle_of_an_epoch_changes_no_bit(every_kind: Index, tmp_path: Path, forks: None) -> None:
    whole, parts = (recipe(tmp_path / name, every_kind) for name in ("whole", "parts"))
    assert start_training(whole).wait() == 0
    child = start_training(parts)
    await_progress(child, tmp_path / "parts" / "run")
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, (tmp_path / "parts" / "stderr").read_text()
    assert start_training(parts).wait() == 0, (tmp_path / "parts" / "stderr").read_text()
    assert logged(tmp_path / "parts" / "run") == logged(tmp_path / "whole" / "run")
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
