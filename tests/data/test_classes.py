"""Names and positions of classes: an exact name wins, and positions are said."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtrain.data.classes import class_numbers, in_order, some_names, split_words
from bigtrain.data.index import Index
from bigtrain.data.read.variants import subset
from bigtrain.data.sources.layouts.by_class import list_by_class
from bigtrain.data.sources.samples import SampleSet
from bigtrain.data.write.shards import ShardOptions, write_shards
from bigtrain.errors import UserError

NUMBERED = ("1", "2", "3")
WORDS = ("cat", "dog", "eel")
TENCH = ("n01440764 tench, Tinca tinca", "n01443537 goldfish, Carassius auratus", "tench")


@pytest.mark.parametrize(
    ("classes", "text", "numbers"),
    [
        (NUMBERED, "1,2,3", [0, 1, 2]),
        (NUMBERED, "index:1, index:2", [1, 2]),
        (NUMBERED, "3,index:0", [2, 0]),
        (NUMBERED, "0", [0]),  # no class has this name
        (tuple(map(str, range(12))), "2,10", [2, 10]),
        (tuple(sorted(map(str, range(12)))), "2,10", [4, 2]),
        (WORDS, "eel,1", [2, 1]),
        (WORDS, "index:0", [0]),
        (("index:1", "cat"), "index:1", [0]),
        (("000", "001", "002"), "1,002", [1, 2]),
        (TENCH, "n01440764 tench, Tinca tinca,tench", [0, 2]),
        (TENCH, "tench, n01443537 goldfish, Carassius auratus", [2, 1]),
    ],
)
def test_an_exact_name_wins_over_a_position(classes: Sequence[str], text: str, numbers: Sequence[int]) -> None:
    assert class_numbers(classes, split_words(classes, text)) == numbers


@pytest.mark.parametrize(
    ("classes", "text", "words"),
    [
        (NUMBERED, "0,1", "class '0': no class has this name, but '1' is one; .* index:0"),
        (("001", "002", "003"), "1", "class '1': .* did you mean '001', or index:1, which is '002'"),
        (NUMBERED, "index:3", "class 'index:3': .*positions are index:0 .. index:2"),
        (WORDS, "dgo", "did you mean 'dog'"),
        (("crane", "cat", "crane"), "crane", "2 classes have this name; .*index:0, index:2"),
        (WORDS, "-1", "no such class"),
        (WORDS, "9" * 5000, "no such class"),
    ],
)
def test_what_could_be_another_class_is_refused(classes: Sequence[str], text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        class_numbers(classes, split_words(classes, text))


def folders(folder: Path, names: Sequence[str]) -> Path:
    """A picture a class, whose grey is its number in `names`."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(folder / name / "a.png")
    return folder


def sharded(source: SampleSet, out: Path, samples_per_shard: int = 5) -> Index:
    options = ShardOptions(None, None, samples_per_shard)
    return Index.read(write_shards(source, out, options, workers=1, quiet=True)[0])


def test_recipes_choose_classes_by_the_same_rule(tmp_path: Path) -> None:
    index = sharded(list_by_class(folders(tmp_path / "in", NUMBERED)), tmp_path / "out")
    assert subset(index, [1]).classes == subset(index, ["1"]).classes == ("1",)
    assert subset(index, ["index:1", 3]).classes == ("2", "3")


def test_folders_of_numbers_are_numbered_in_their_order(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    index = sharded(list_by_class(folders(tmp_path / "in", names)), tmp_path / "out")
    assert index.classes == tuple(names)
    assert in_order(["b", "10", "9"]) == ["10", "9", "b"]


def test_shards_that_number_them_as_text_are_completed_so(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    source = list_by_class(folders(tmp_path / "in", names))
    before = sharded(source.numbered_as(sorted(names)), tmp_path / "out")
    assert before.classes == tuple(sorted(names))
    (tmp_path / "out/train-000001.tar").unlink()
    after = sharded(source, tmp_path / "out")
    assert (after.classes, after.fingerprint) == (before.classes, before.fingerprint)


def test_a_message_lists_the_first_of_many_names() -> None:
    assert some_names(WORDS) == "cat, dog, eel"
    assert some_names(["tench, Tinca tinca", "goldfish"]) == "'tench, Tinca tinca', goldfish"
    assert some_names([str(number) for number in range(12)]).endswith("8, 9 and 2 more")


@pytest.mark.parametrize(
    ("word", "message"),
    [("10", "did you mean '010'"), ("001;002", "did you mean '001,002'"), ("001 010", "'001,010'"), ("", "is empty")],
)
def test_what_may_have_been_meant_is_said(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_numbers(["001", "002", "010"], [word])
