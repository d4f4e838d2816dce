"""What is wrong with a set is one sentence that names the file and the remedy."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bigtrain.errors import UserError
from launch.shard import main
from tests.data.write.sample_sets import (
    CAPTIONS,
    SETS,
    captions_beside,
    maps,
    noise,
    picture,
    read_back,
    two_folders,
    write,
)


def break_pair(folder: Path) -> None:
    picture(folder / "small/003.png", noise(2, 4, 3))


def break_map(folder: Path) -> None:
    picture(folder / "labels/town/003_ids.png", np.full((6, 4, 1), 3, dtype=np.uint8))


def break_caption(folder: Path) -> None:
    (folder / "in/train/003.txt").write_bytes(b"\xe9t\xe9")


def empty_domain(folder: Path) -> None:
    for path in (folder / "in/trainB").iterdir():
        path.unlink()


def nan(folder: Path) -> None:
    np.save(folder / "in/walk/003.npy", np.full((2, 2), np.nan))


MISTAKES: dict[str, tuple[str, Callable[[Path], object], Sequence[str], str]] = {
    "a pair of other sizes": (
        "a larger folder",
        break_pair,
        [],
        r"small/003\.png: is 2 x 4 beside 8 x 12 of .*in/003\.png, but low is to be 4 times smaller than image; mend or",
    ),
    "a factor that was not said": (
        "a larger folder",
        lambda folder: None,
        ["--factor", "low=1"],
        r"is 2 x 3 beside 8 x 12 of .*, but low is to be as large as image; say --factor low=4",
    ),
    "an odd width": (
        "halves",
        lambda folder: picture(folder / "in/train/003.png", noise(6, 7, 3)),
        [],
        r"in/train/003\.png: the picture is broken: it is 7 pixels wide, which has no two equal halves",
    ),
    "a class without a name": (
        "maps",
        break_map,
        [],
        r"003_ids\.png: the map is broken: it has the class 3, which has no name: --classes seg=FILE gives 3 names",
    ),
    "colours for a map": (
        "maps",
        lambda folder: picture(folder / "labels/town/003_ids.png", noise(6, 4, 3)),
        [],
        r"003_ids\.png: the map is broken: its file has the colours of a picture \(RGB\), not one number a pixel",
    ),
    "a caption that is not UTF-8": (
        "captions beside",
        break_caption,
        [],
        r"003\.txt: the text is broken: its text is not UTF-8 .*--skip-bad-captions leaves such samples out",
    ),
    "an empty domain": ("domains", empty_domain, [], r"in/trainB: no pictures here .*; fill this domain"),
    "a short clip": (
        "clips",
        lambda folder: None,
        ["--frames", "4"],
        r"in/walk/00\d: the clip is broken: it has 3 frames, fewer than the 4 of --frames",
    ),
    "clips of other sizes": (
        "clips",
        lambda folder: [picture(path, noise(5, 4, 3)) for path in (folder / "in/walk/003").iterdir()],
        [],
        r"in/walk/003: the clip is broken: it has frames of 5 x 4, where others have 6 x 4; give --size",
    ),
    "a frame of another size": (
        "clips",
        lambda folder: picture(folder / "in/walk/003/frame_1.png", noise(5, 4, 3)),
        [],
        r"in/walk/003: the clip is broken: frame 1 is 5 x 4, but the first is 6 x 4",
    ),
    "NaN": ("a folder of arrays", nan, [], r"walk/003\.npy: the array is broken: its file has NaN"),
    "an array of another shape": (
        "a folder of arrays",
        lambda folder: np.save(folder / "in/walk/003.npy", np.zeros((2, 3))),
        [],
        r"walk/003\.npy: the array is broken: it has rows of the shape \[3\], where others have \[2\]",
    ),
    "words in a csv of numbers": (
        "rows of a csv",
        lambda folder: (folder / "points.csv").write_text("x,y\n1,2\n3,four\n"),
        [],
        r"points\.csv: 00000001: the array is broken: a row of it has no number: .*'four'",
    ),
    "two files of one name": (
        "two folders",
        lambda folder: picture(folder / "other/cat/003.png", noise(6, 4, 3)),
        [],
        r"other/cat/003\.bmp and .*other/cat/003\.png could both be b of cat/003; leave one",
    ),
    "two pictures of one name": (
        "two folders",
        lambda folder: picture(folder / "in/cat/003.bmp", noise(6, 4, 3)),
        [],
        r"other/cat/003\.bmp: is b of two files, cat/003\.bmp and cat/003\.png; give each",
    ),
    "no partner": (
        "two folders",
        lambda folder: (folder / "other/cat/003.bmp").unlink(),
        [],
        r"in/cat/003\.png: has no b in .*other; add it, or take the file away",
    ),
    "a partner alone": (
        "two folders",
        lambda folder: picture(folder / "other/cat/999.png", noise(6, 4, 3)),
        [],
        r"other/cat/999\.png: has no partner in .*in; add it, or take this file away",
    ),
    "two captions": (
        "captions in a csv",
        lambda folder: (folder / "captions.csv").open("a").write("003.png,again,me\n"),
        [],
        r"captions\.csv: 003\.png and .* could both be caption of 003\.png",
    ),
    "a list that is none": (
        "attributes",
        lambda folder: (folder / "list_attr.txt").write_text("no list"),
        [],
        r"list_attr\.txt: no list of attributes: its first line is the number",
    ),
    "a line of the list that is short": (
        "attributes",
        lambda folder: (folder / "list_attr.txt").write_text(
            (folder / "list_attr.txt").read_text().replace("003.png  ", "003.png  7 ")
        ),
        [],
        r"list_attr\.txt: 003\.png: the line of attributes is broken: it has 4 numbers for 3 attributes",
    ),
    "a folder that is not there": (
        "two folders",
        lambda folder: None,
        ["--field", "c=/nowhere"],
        r"--field c: /nowhere: there is no such file or folder",
    ),
    "a field twice": (
        "two folders",
        lambda folder: None,
        ["--field", "b=/nowhere"],
        r"--field b: there are two fields",
    ),
    "a factor of all fields": (
        "two folders",
        lambda folder: None,
        ["--factor", "image=2", "--factor", "b=2"],
        r"--factor (image|b)=2: no picture is larger; leave it out for the largest field",
    ),
    "a factor of a text": (
        "captions in a csv",
        lambda folder: None,
        ["--factor", "caption=2"],
        r"--factor caption: is no picture",
    ),
    "a factor of a half": (
        "halves",
        lambda folder: None,
        ["--factor", "b=2"],
        r"--factor b: is no picture that may be smaller",
    ),
    "frames of pictures": (
        "two folders",
        lambda folder: None,
        ["--frames", "3"],
        r"--fps and --frames are of clips, of which there are none",
    ),
    "a factor of no field": (
        "two folders",
        lambda folder: None,
        ["--factor", "c=2"],
        r"--factor c: there is no such field",
    ),
}


@pytest.mark.parametrize(("kind", "change", "more", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_sentence_that_names_the_file(
    tmp_path: Path, kind: str, change: Callable[[Path], object], more: Sequence[str], words: str
) -> None:
    made = SETS[kind](tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=words) as raised:
        write(made, tmp_path / "out", *more)
    head, *lines = str(raised.value).splitlines()
    assert not lines or ("--skip-broken:" in head and all(re.search(words, line) for line in lines))


def test_a_map_needs_names(tmp_path: Path) -> None:
    made = maps(tmp_path)
    made.words = made.words[: made.words.index("--classes")]
    with pytest.raises(UserError, match=r"--field seg: a map of classes needs their names: --classes seg=FILE"):
        write(made, tmp_path / "out")


def test_names_of_what_has_none_are_refused(tmp_path: Path) -> None:
    made = maps(tmp_path)
    (tmp_path / "names.txt").write_text("a")
    with pytest.raises(UserError, match=r"--classes image: a field of the kind image has no names; leave it out"):
        write(made, tmp_path / "out", "--classes", f"image={tmp_path}/names.txt")


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "x"])
def test_a_rate_of_frames_is_above_zero(tmp_path: Path, rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path / "out"), "--kind", "clip", "--fps", rate])
    assert "invalid rate above 0 value" in capsys.readouterr().err


def test_captions_beside_pictures_are_not_counted_as_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(captions_beside(tmp_path), tmp_path / "out")
    assert "left out" not in capsys.readouterr().err


def test_bad_captions_are_named_and_left_out_if_that_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = captions_beside(tmp_path)
    break_caption(tmp_path)
    index = write(made, tmp_path / "out", "--skip-bad-captions")["train"]
    assert "in/train/003.txt: is not UTF-8, and left out" in capsys.readouterr().err
    assert sorted(read_back(index, "caption")) == sorted(text for n, text in enumerate(CAPTIONS) if n != 3)


def test_other_fields_over_existing_shards_are_refused(tmp_path: Path) -> None:
    made, out = two_folders(tmp_path), tmp_path / "out"
    write(made, out)
    with pytest.raises(UserError, match="were made with other fields"):
        main([made.words[0], str(out), "--samples-per-shard", "3", "--workers", "1"])
