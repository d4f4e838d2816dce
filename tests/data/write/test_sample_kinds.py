"""Every kind of sample: written by the command as a user gives it, read back equal, verified, and continued after a kill."""

import multiprocessing
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.index import Index
from bigtrain.data.points import POINT_SETS, points
from bigtrain.data.read.reader import Reader
from bigtrain.data.sources.clips import ClipListing
from bigtrain.data.sources.folder import Folder
from bigtrain.data.sources.samples import Listing
from bigtrain.data.write import encoding
from bigtrain.data.write.verify import verify
from bigtrain.errors import UserError
from launch.shard import main
from tests.data.write.sample_sets import (
    SETS,
    Set,
    a_larger_folder,
    contents,
    domains,
    draws,
    expected,
    maps,
    noise,
    order_of,
    picture,
    read_back,
    states,
    write,
)


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Set:
    return SETS[request.param](tmp_path)


ALL = pytest.mark.parametrize("made", SETS, indirect=True)


@ALL
def test_what_was_written_is_read_back_equal_and_verified(made: Set, tmp_path: Path) -> None:
    indexes = write(made, tmp_path / "out")
    assert indexes.keys() == made.values.keys()
    for split, index in indexes.items():
        assert verify(index, workers=0, quiet=True) == []
        assert index.version == 2
        for name, values in made.values[split].items():
            found, wanted = read_back(index, name), expected(made, split, name)
            assert len(found) == len(values)
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(one, other)
        for name, facts in made.fields.items():
            assert facts.items() <= index.fields[name].to_json().items()


@ALL
def test_a_second_run_changes_nothing_and_completes_what_is_missing(made: Set, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(made, out)
    before = states(out)
    write(made, out)
    assert states(out) == before
    whole = contents(out)
    missing = sorted(out.glob("*.tar"))[0]
    missing.unlink()
    write(made, out)
    assert contents(out) == whole


@ALL
def test_indexing_again_in_place_changes_nothing(made: Set, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(made, out)
    before = contents(out)
    main([str(out), "--index-only", "--workers", "1"])
    assert contents(out) == before


@pytest.mark.parametrize("made", ["two folders", "maps", "clips", "captions in a csv"], indirect=True)
def test_a_killed_run_is_continued(made: Set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(made, tmp_path / "whole")
    out, encode = tmp_path / "out", encoding.encode

    def slowly(*given: Any) -> Any:
        time.sleep(0.02)
        return encode(*given)

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "encode", slowly)
        process = multiprocessing.get_context("fork").Process(target=write, args=(made, out))
        process.start()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (out.exists() and list(out.glob("*.tar")) and list(out.glob(".*.tmp"))):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not list(out.glob("train.json"))
    finished = states(out)
    write(made, out)
    assert contents(out) == contents(tmp_path / "whole")
    assert all(states(out)[name] == state for name, state in finished.items() if name.endswith(".tar"))


@pytest.mark.parametrize("name", POINT_SETS)
def test_points_are_made_on_the_spot(name: str, tmp_path: Path) -> None:
    main([name, str(tmp_path), "--workers", "1"])
    for split, count in (("train", 10_000), ("validation", 2_000)):
        index = Index.read(tmp_path / f"{split}.json")
        values, classes = points(name, split)
        assert (index.samples, list(index.classes)) == (count, list(POINT_SETS[name][1]))
        assert index.fields["point"].to_json() == {
            "kind": "array",
            "members": ["npy"],
            "shape": [2],
            "axes": ["x", "y"],
        }
        batch, failures = Reader(index).read(np.arange(count))
        assert not failures
        order = order_of([f"{split}/{number:08d}" for number in range(count)])
        np.testing.assert_array_equal(batch["point"], values[order])
        np.testing.assert_array_equal(batch["label"], classes[order])


def test_points_are_where_their_papers_put_them() -> None:
    values, classes = points("gaussians8", "train")
    radii = [np.linalg.norm(values[classes == one].mean(axis=0)) for one in range(8)]
    np.testing.assert_allclose(radii, 2, atol=0.01)
    assert 0.019 < np.concatenate([values[classes == n] - values[classes == n].mean(0) for n in range(8)]).std() < 0.021
    values, classes = points("gaussians25", "train")
    middles = {tuple(np.rint(values[classes == one].mean(axis=0)).astype(int).tolist()) for one in range(25)}
    assert middles == {(x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)}
    assert not np.array_equal(points("two_moons", "train")[0][:2000], points("two_moons", "validation")[0])


def test_domains_are_trained_with_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, out = domains(tmp_path), tmp_path / "out"
    write(made, out)
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"'data.train={{a: {out}/trainA.json, b: {out}/trainB.json}}'" in last
    assert f"'data.validation={{a: {out}/testA.json, b: {out}/testB.json}}' data.image_size=4" in last


def test_fields_of_a_sample_are_resized_alike(tmp_path: Path) -> None:
    made = a_larger_folder(tmp_path)
    index = write(made, tmp_path / "out", "--size", "4x8")["train"]
    assert {name: index.fields[name].to_json()["size"] for name in ("image", "low")} == {"image": [4, 8], "low": [1, 2]}
    with pytest.raises(UserError, match=r"--size 6 is not divisible by --factor low=4"):
        write(made, tmp_path / "other", "--size", "6")


def test_maps_are_resized_without_new_classes(tmp_path: Path) -> None:
    made = maps(tmp_path)
    index = write(made, tmp_path / "out", "--size", "3x2")["train"]
    for found, whole in zip(read_back(index, "seg"), expected(made, "train", "seg"), strict=True):
        assert found.shape == (3, 2)
        assert set(np.unique(found)) <= set(np.unique(whole))


# Whatever their number, sizes and names


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=9),
    factor=st.integers(1, 3),
    channels=st.sampled_from([1, 3]),
    per_shard=st.integers(1, 4),
)
def test_pairs_of_any_sizes(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[tuple[int, int]],
    factor: int,
    channels: int,
    per_shard: int,
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    large, small = {}, {}
    for number, (height, width) in enumerate(sizes):
        large[number] = picture(folder / f"in/{number}.png", noise(height * factor, width * factor, channels))
        small[number] = picture(folder / f"low/{number}.png", noise(height, width, 3))
    words = [f"{folder}/in", f"{folder}/out", "--labels", "none", "--field", f"low={folder}/low"]
    main([*words, "--factor", f"low={factor}", "--samples-per-shard", str(per_shard), "--workers", "1"])
    index = Index.read(folder / "out/train.json")
    assert verify(index, workers=0, quiet=True) == []
    same = len(set(sizes)) == 1
    assert (index.image_size is not None, index.channels) == (same, channels)
    if same:
        order = order_of([f"{number}.png" for number in range(len(sizes))])
        for name, values in (("image", large), ("low", small)):
            for found, number in zip(read_back(index, name), order, strict=True):
                np.testing.assert_array_equal(found, values[number])


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8), width=st.integers(1, 3), per_shard=st.integers(1, 4)
)
def test_arrays_of_any_lengths(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], width: int, per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("arrays")
    (folder / "in/all").mkdir(parents=True)
    values = [draws.normal(size=(length, width)).astype(np.float32) for length in lengths]
    for number, value in enumerate(values):
        np.save(folder / f"in/all/{number}.npy", value)
    words = [f"{folder}/in", f"{folder}/out", "--kind", "array", "--samples-per-shard", str(per_shard)]
    main([*words, "--workers", "1"])
    index = Index.read(folder / "out/train.json")
    assert verify(index, workers=0, quiet=True) == []
    facts = index.fields["array"].to_json()
    assert (facts["shape"], facts.get("varies", False)) == ([max(lengths), width], len(set(lengths)) > 1)
    order = order_of([f"all/{number}.npy" for number in range(len(lengths))])
    for found, number in zip(read_back(index, "array"), order, strict=True):
        np.testing.assert_array_equal(found, values[number])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1200)), unique=True, max_size=30), st.randoms())
def test_frames_are_in_the_order_of_their_numbers(frames: list[tuple[int, int]], shuffle: Any) -> None:
    listing = Listing([Folder(Path("/nowhere"))])
    found = list(frames)
    shuffle.shuffle(found)
    for clip, frame in found:
        listing.add(f"clip{clip}/f{frame}.jpg", ())
    runs = ClipListing(listing).members()
    wanted = {
        f"clip{clip}": [f"clip{clip}/f{n}.jpg" for n in sorted(n for c, n in frames if c == clip)] for clip, _ in frames
    }
    assert {
        name: [runs.files.names[at] for at in range(runs.begins[number], runs.begins[number + 1])]
        for number, name in enumerate(runs.names)
    } == wanted
    assert list(runs.names) == sorted(wanted)


def test_workers_do_not_change_the_bytes(tmp_path: Path) -> None:
    made = maps(tmp_path)
    write(made, tmp_path / "one")
    main([made.words[0], str(tmp_path / "two"), *made.words[1:], "--samples-per-shard", "3", "--workers", "2"])
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
