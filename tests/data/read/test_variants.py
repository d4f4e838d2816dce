"""Some classes, or all equally often, or images made square: an index like any other, and the promises hold for it."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bigtrain.data.index import Index, plain_fields
from bigtrain.data.read.order import Epochs, balanced_counts
from bigtrain.data.read.stream import SplitLoader, Stream
from bigtrain.data.read.variants import balanced, resized, subset, with_known_labels
from bigtrain.data.splits import describe, find_images, find_split
from bigtrain.data.write.codes import encode_shards, index_codes
from bigtrain.data.write.foreign_shards import index_shards
from bigtrain.errors import UserError
from bigtrain.families.data_spec import DataSpec
from bigtrain.inference.splits import images_behind
from launch.shard import main
from tests.data.conftest import make_numbered_shards, write_tar
from tests.data.read.test_stream import WORLDS, numbers_of, options, read, same
from tests.data.test_resize import photograph
from tests.data.write.test_codes import encode, manifest_of, write

Make = Callable[..., Index]


def test_a_subset_has_the_chosen_classes_numbered_anew_in_their_order(numbered_shards: Make) -> None:
    whole = numbered_shards([7, 5, 1])  # labels n % 5; classes "0" .. "4"
    part = subset(whole, ["3", 1])
    assert (part.classes, part.samples, part.class_counts) == (("3", "1"), 5, (2, 3))
    assert len(part.shards) == 2  # the third has none of them
    ((numbers, batch),) = SplitLoader(part, rank=0, world=1, batch=10, workers=0)
    assert numbers.tolist() == list(range(5))
    shown = numbers_of(batch["image"])
    assert shown == [n for n in range(13) if n % 5 in (1, 3)]
    assert batch["label"].tolist() == [{3: 0, 1: 1}[n % 5] for n in shown]


def test_a_subset_is_other_data_in_every_order(numbered_shards: Make) -> None:
    whole = numbered_shards([10])
    variants = [whole, subset(whole, [0, 1]), subset(whole, [1, 0]), subset(whole, ["0", 2]), balanced(whole)]
    variants += [resized(whole, (8, 8), "exact"), resized(whole, (8, 8), "scaled"), resized(whole, (16, 16), "exact")]
    assert len({variant.fingerprint for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (["catt"], r"data\.classes: .*class 'catt': there is no such class; did you mean 'cat'\? \(there are 2"),
        ([2], r"data\.classes: .*class '2': there is no such class"),
        (["cat", 0], r"data\.classes: a class is given twice"),
    ],
)
def test_a_class_that_there_is_not_is_named(tmp_path: Path, chosen: list[int | str], words: str) -> None:
    where = labelled_by_json(tmp_path, ["cat", "dog", "cat"])
    with pytest.raises(UserError, match=words):
        find_split(options(train=where, classes=chosen, image_size=8, resize="exact"), "train")


def test_a_name_of_two_classes_is_given_by_number(numbered_shards: Make, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("crane\ncat\ncrane\ndog\neel\n")
    whole = numbered_shards([10])
    with pytest.raises(
        UserError, match=r"class 'crane': 2 classes have this name; give one by its position: index:0, index:2"
    ):
        subset(whole, ["crane"])
    assert subset(whole, [2, "eel"]).classes == ("crane", "eel")


def test_both_splits_have_the_subset_and_only_training_is_balanced(numbered_shards: Make) -> None:
    where = str(numbered_shards([6]).path)  # label 0 twice, the others once
    data = options(train=where, validation=where, classes=[0, 4], balance=True)
    train, validation = find_split(data, "train"), find_split(data, "validation")
    assert train.classes == validation.classes == ("0", "4")
    assert (train.class_counts, validation.class_counts) == ((2, 2), (2, 1))


@pytest.mark.parametrize("sizes", [[0, 6, 1], [3, 0, 4], [4, 3, 0]])
def test_an_empty_shard_does_not_change_what_is_balanced(numbered_shards: Make, sizes: list[int]) -> None:
    index = balanced(numbered_shards(sizes))
    seen = np.bincount(Epochs(index, 7, 1).order(0), minlength=index.samples)
    assert seen.tolist() == balanced_counts(index.labels, 7, 0).tolist()


def test_an_empty_class_cannot_be_balanced(numbered_shards: Make) -> None:
    whole = numbered_shards([3])
    padded = Index(whole.path, whole.split, plain_fields((*whole.classes, "none such"), whole.image_size), whole.shards)
    with pytest.raises(UserError, match=r"no sample of the class 'none such'.*data\.classes"):
        balanced(padded)


@settings(max_examples=15, deadline=None)
@given(
    shard_sizes=st.lists(st.integers(5, 9), min_size=1, max_size=4),
    window=st.integers(1, 3),
    world=WORLDS,
    later_world=WORLDS,
    stop=st.integers(0, 4),
)
def test_a_balanced_epoch_is_its_multiset_over_any_ranks_and_restarts(
    shard_sizes: list[int], window: int, world: int, later_world: int, stop: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        index = balanced(make_numbered_shards(shard_sizes, Path(name)))
        length = sum(index.class_counts)
        steps = stop + 2 * length // 12 + 1
        given = {"microbatch": 12, "shuffle_shards": window, "flip": True}
        before = read(index, stop, world=world, **given)
        after = read(index, steps - stop, world=later_world, position=12 * stop, **given)
        seen = [number for batch in before + after for number in numbers_of(batch["image"])]
        for epoch in range(2):
            wanted = balanced_counts(index.labels, 7, epoch)
            counted = Counter(seen[epoch * length : (epoch + 1) * length])
            assert [counted[number] for number in range(index.samples)] == wanted.tolist()
        assert same(before + after, read(index, steps, world=1, **given))


def labelled_by_json(folder: Path, labels: list[object]) -> str:
    """The index of shards whose labels are in the field `kind` of json members."""
    folder.mkdir(exist_ok=True)
    samples = [
        {"__key__": f"{n}", "jpg": photograph(20, 16), "json": json.dumps({"kind": label}).encode()}
        for n, label in enumerate(labels)
    ]
    write_tar(folder / "train-0.tar", samples)
    (path,) = index_shards(folder, workers=0, quiet=True, labels="json:kind")
    return str(path)


def test_photographs_are_streamed_as_squares_where_the_recipe_allows_it(tmp_path: Path) -> None:
    samples = [
        {"__key__": f"{n}", "jpg": photograph(w, h), "cls": b"0"} for n, (w, h) in enumerate([(90, 70), (64, 99)])
    ]
    write_tar(tmp_path / "train-0.tar", samples)
    (path,) = index_shards(tmp_path, workers=0, quiet=True)
    with pytest.raises(UserError, match=r"different sizes.*data\.resize=exact.*--size 16"):
        find_split(options(train=str(path), image_size=16), "train")
    index = find_split(options(train=str(path), image_size=16, resize="exact"), "train")
    assert (index.image_size, index.variant) == ((16, 16), {"resize": "exact"})
    assert find_images(str(path), "train", "INDEX", (16, 16), "exact").fingerprint == index.fingerprint
    one, two = (read(index, 2, world=world, microbatch=2, image_size=16) for world in (1, 2))
    assert one[0]["image"].shape == (2, 16, 16, 3)
    assert same(one, two)


def test_pixels_that_were_decoded_beforehand_are_read_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        (tmp_path / f"in/{number}").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / f"in/{number}/0.png")
    main([str(tmp_path / "in"), str(tmp_path / "out"), "--format", "npy", "--workers", "1"])
    index = Index.read(tmp_path / "out/train.json")
    stream = Stream(index, options(image_size=8), 0, rank=0, world=1, microbatch=3)
    batch = next(stream)
    stream.close()
    assert np.array_equal(batch["image"].numpy(), pixels[batch["label"].numpy()])
    theirs = list(wds.WebDataset(str(tmp_path / "out/train-000000.tar"), shardshuffle=False).decode())
    assert all(np.array_equal(sample["npy"], pixels[sample["cls"]]) for sample in theirs)


def test_labels_of_samples_are_drawn_as_training_drew_its_own(numbered_shards: Make) -> None:
    whole = numbered_shards([6])
    spec = DataSpec.from_json(describe(whole))
    assert (spec.class_counts, spec.images) == ((2, 1, 1, 1, 1), 6)
    spec = DataSpec.from_json(describe(balanced(subset(whole, [4, 0]))))
    assert (spec.classes, spec.class_counts, spec.images) == (("4", "0"), (2, 2), 4)


def test_what_was_done_to_the_data_goes_into_the_checkpoint(numbered_shards: Make) -> None:
    whole = numbered_shards([6])
    assert "view" not in describe(whole)
    variant = describe(balanced(subset(resized(whole, (8, 8), "scaled"), ["4", 0])))["view"]
    assert variant == {"resize": "scaled", "classes": [4, 0], "balance": True}


def test_the_images_behind_a_subset_of_codes_are_the_same_subset(tmp_path: Path) -> None:
    images = make_numbered_shards([5, 3], tmp_path / "images")
    codes = subset(write(images, tmp_path / "codes"), [2, 3])
    behind = images_behind(codes)
    assert (behind.classes, behind.labels.tolist()) == (codes.classes, codes.labels.tolist())


def test_images_that_moved_together_with_their_codes_are_found_again(tmp_path: Path) -> None:
    images = make_numbered_shards([5, 3], tmp_path / "before/images")
    write(images, tmp_path / "before/run/codes")
    (tmp_path / "before").rename(tmp_path / "after")
    codes = Index.read(tmp_path / "after/run/codes/train.json")
    assert images_behind(codes).fingerprint == images.fingerprint
    (tmp_path / "after/images").rename(tmp_path / "after/gone")
    with pytest.raises(UserError, match=r"the images that its codes were made from cannot be read: .*before/images"):
        images_behind(codes)


def test_images_that_were_resized_to_be_encoded_are_found_again(tmp_path: Path) -> None:
    images = resized(make_numbered_shards([5, 3], tmp_path / "images", size=8), (4, 4), "exact")
    manifest = manifest_of(images)
    manifest.images["resize"] = "exact"
    records = encode_shards(
        images, tmp_path / "codes", manifest, encode, rank=0, world=1, batch=4, workers=0, progress=lambda done: None
    )
    codes = index_codes(images, tmp_path / "codes", manifest, records)
    behind = images_behind(Index.read(codes.path))
    assert (behind.image_size, behind.fingerprint) == ((4, 4), images.fingerprint)


def known_labels_of(index: Index) -> dict[int, int]:
    """By the number that a sample's image shows, its known label."""
    ((_, batch),) = SplitLoader(index, rank=0, world=1, batch=100, workers=0)
    return dict(zip(numbers_of(batch["image"]), batch["known_label"].tolist(), strict=True))


def test_few_labels_are_known_equally_many_of_each_class(numbered_shards: Make) -> None:
    whole = numbered_shards([12, 8, 10])  # labels n % 5; six of each
    known = known_labels_of(with_known_labels(whole, 2, 0, only=False))
    chosen = {number: label for number, label in known.items() if label >= 0}
    assert len(known) == 30
    assert Counter(chosen.values()) == dict.fromkeys(range(5), 2)
    assert all(label == number % 5 for number, label in chosen.items())
    assert known == known_labels_of(with_known_labels(whole, 2, 0, only=False))
    other = with_known_labels(whole, 2, 1, only=False)
    assert known != known_labels_of(other)
    assert known_labels_of(with_known_labels(whole, 2, 0, only=True)) == chosen
    described = other.fields["known_label"].described()
    assert (described["kind"], described["share"]) == ("known_label", 1 / 3)


@pytest.mark.parametrize("balance", [False, True])
def test_the_share_of_known_labels_is_that_of_the_samples_of_an_epoch(balance: bool, numbered_shards: Make) -> None:
    where = str(numbered_shards([16]).path)  # labels n % 5: four of the class 0, three of the others
    index = find_split(options(train=where, known_labels={"per_class": 2}, balance=balance), "train")
    field = index.fields["known_label"]
    shown = Epochs(index, 0, 1, "data/order").numbers(0, sum(index.class_counts)).tolist()
    assert sum(field.known[shown]) / len(shown) == pytest.approx(field.share, abs=0.08 if balance else 1e-12)
    if balance:  # over many epochs
        assert field.share == pytest.approx((2 / 4 + 4 * 2 / 3) / 5)


def test_known_labels_make_other_data(numbered_shards: Make) -> None:
    whole = numbered_shards([10, 10])
    variants = [
        whole,
        *(with_known_labels(whole, *how) for how in ((1, 0, False), (1, 0, True), (2, 0, False), (1, 1, False))),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)


def test_a_recipe_gives_few_labels_to_training_alone_after_it_chose_classes(numbered_shards: Make) -> None:
    where = str(numbered_shards([15]).path)
    data = options(train=where, validation=where, classes=[4, 2], known_labels={"per_class": 1})
    known = known_labels_of(find_split(data, "train"))
    assert sorted(label for label in known.values() if label >= 0) == [0, 1]
    assert all(label == {4: 0, 2: 1}[number % 5] for number, label in known.items() if label >= 0)
    assert -1 not in known_labels_of(find_split(data, "validation")).values()
    with pytest.raises(
        UserError, match=r"data\.known_labels: .* fewer than 4 samples of the class '4'; take fewer per_class"
    ):
        find_split(options(train=where, classes=[4, 2], known_labels={"per_class": 4}), "train")
