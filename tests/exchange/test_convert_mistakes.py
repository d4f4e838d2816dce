"""What cannot be converted is refused in a sentence, and nothing is written: hostile files, half ones, other architectures."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bigtrain.errors import UserError
from bigtrain.exchange.convert.files import read_weights
from launch.convert import main as convert
from tests.exchange import authors_checkpoints as authors

MADE = "written_by_the_pickle"
SIZE = "data.image_size=8"


class Writes:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "harm")


def hostile_zip(path: Path) -> None:
    torch.save({"w": torch.zeros(1), "x": Writes(path.parent / MADE)}, path)


def hostile_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"x": Writes(path.parent / MADE)}))


def hostile_old_format(path: Path) -> None:
    torch.save({"x": Writes(path.parent / MADE)}, path, _use_new_zipfile_serialization=False)


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(2**26))


def overlapping_zip(path: Path) -> None:
    """Every entry of the directory is the same bytes of the file."""
    torch.save({"w": torch.zeros(2**16)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start, entries = archive.start_dir, archive.infolist()
    end = content.rindex(b"PK\x05\x06")
    big = next(entry for entry in entries if entry.file_size == 2**18)
    offset = content.index(big.filename.encode(), start) - 46
    one = bytes(content[offset : offset + 46 + len(big.filename) + len(big.extra)])
    directory = bytes(content[start:end].split(b"PK\x06\x06")[0]) + one * 50
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(entries) + 50, len(entries) + 50, len(directory), start, 0)
    path.write_bytes(bytes(content[:start]) + directory + tail)


def expanded(path: Path) -> None:
    """A tensor of a billion elements that are one number in the file."""
    torch.save({"w": torch.zeros(1).expand(2**15, 2**15)}, path)


def picture(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, "PNG")


def array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def empty(path: Path) -> None:
    path.touch()


def half(path: Path) -> None:
    torch.save({"w": torch.zeros(2**12)}, path)
    path.write_bytes(path.read_bytes()[:9000])


def half_of_old_format(path: Path) -> None:
    torch.save({"w": torch.zeros(2**12)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:9000])


def bomb_of_old_format(path: Path) -> None:
    """Eight gigabytes by its own account."""
    torch.save({"w": torch.zeros(70_000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(struct.pack("<i", 70_000), struct.pack("<i", 2**31 - 1)))


def half_safetensors(path: Path) -> None:
    save_file({"w": torch.zeros(2**12)}, path)
    path.write_bytes(path.read_bytes()[:9000])


def program(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))


def numbers(path: Path) -> None:
    torch.save({"step": 3, "lr": 0.1}, path)


def diverged(path: Path) -> None:
    torch.save({"w": torch.full((3,), float("nan"))}, path)


def nothing_known(path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(3)}, path)


FILES: list[tuple[Callable[[Path], None], str]] = [
    (hostile_zip, "holds Python objects beside tensors, which could run code"),
    (hostile_pickle, "is a pickle, but not of torch.save: such a file can run code"),
    (hostile_old_format, "holds Python objects beside tensors, which could run code"),
    (zip_bomb, "is a zip of 2 entries that hold 67,1.* bytes in a file of"),
    (overlapping_zip, "is a zip of .* entries that hold .* bytes in a file of"),
    (expanded, "w has 1,073,741,824 elements, and the file does not hold so many"),
    (picture, "is no checkpoint: it is neither what torch.save writes nor safetensors"),
    (array, "is no checkpoint"),
    (pointer, "fetch it with `git lfs pull`"),
    (empty, "is no checkpoint"),
    (half, "is damaged, or only the beginning of a checkpoint"),
    (half_of_old_format, "is damaged, or only the beginning of a checkpoint"),
    (bomb_of_old_format, "is damaged, or only the beginning of a checkpoint"),
    (half_safetensors, "is damaged, or only the beginning of a checkpoint"),
    (program, "is no checkpoint but a TorchScript program"),
    (numbers, "'step' is a int, where a state dict has tensors alone"),
    (diverged, "w has values that are not finite"),
    (nothing_known, r"its names \(encoder.weight\) are those of no source \(there are: biggan-pytorch"),
]


@pytest.mark.parametrize(("make", "message"), FILES, ids=[make.__name__ for make, _ in FILES])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, for making one
def test_a_file_of_another_kind_is_refused_and_nothing_is_written(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "x.pth")
    with pytest.raises(UserError, match=message) as raised:
        convert([str(tmp_path / "x.pth"), str(tmp_path / "out")])
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_safetensors_whose_length_begins_as_a_pickle_are_opened(tmp_path: Path) -> None:
    lengths = {}
    for letters in range(1, 200):
        file = tmp_path / "x.safetensors"
        save_file({"w" * letters: torch.zeros(1)}, file)
        lengths[file.read_bytes()[0]] = "w" * letters
        if 0x80 in lengths:
            break
    tensors, _, _ = read_weights(file)
    assert list(tensors) == [lengths[0x80]]


def refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as raised:
        convert([arguments[0], str(tmp_path / "out"), *arguments[1:]])
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_source_is_refused_and_the_nearest_named(tmp_path: Path) -> None:
    refused(
        tmp_path,
        ["x.pth", "--from", "bigan-pytorch"],
        "--from: 'bigan-pytorch' is no source; did you mean biggan-pytorch",
    )


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, [str(tmp_path / "x.pth")], "there is no such file or folder")


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    refused(tmp_path, [str(tmp_path / "weights")], "holds no checkpoint by the names that any source gives")


def test_a_folder_of_several_checkpoints_asks_which(tmp_path: Path) -> None:
    authors.saved(tmp_path / "weights", ["w"]).rename(tmp_path / "weights" / "ema_0.9999_100000.pt")
    authors.saved(tmp_path / "weights", ["w"]).rename(tmp_path / "weights" / "ema_0.9999_200000.pt")
    refused(tmp_path, [str(tmp_path / "weights")], "holds 2 such checkpoints .*; give one")


def test_weights_of_another_source_are_refused_and_their_source_named(tmp_path: Path) -> None:
    folder = authors.biggan(tmp_path / "weights", 32)
    file = str(folder / "G_ema.pth")
    refused(
        tmp_path, [file, "--from", "guided-diffusion"], "are not those of guided-diffusion; .*--from biggan-pytorch"
    )


def test_two_sources_of_the_same_names_ask_which(tmp_path: Path) -> None:
    file = authors.unet(tmp_path / "w", "improved_diffusion_unet", "cifar", "model.pt")
    refused(
        tmp_path,
        [str(file)],
        "is of guided-diffusion or of improved-diffusion, whose names are the same; say which",
    )


def test_half_a_state_dict_is_refused_and_what_is_missing_named(tmp_path: Path) -> None:
    file = authors.unet(tmp_path / "w", "pytorch_diffusion_unet", "cifar", "model.ckpt")
    tensors = torch.load(file)
    for name in ("mid.block_2.conv1.weight", "mid.block_2.conv1.bias"):
        del tensors[name]
    torch.save(tensors, file)
    arguments = [str(file), SIZE, "family.variance=fixed_large"]
    refused(tmp_path, arguments, r"tensors of the unet: 2 missing \(unet.mid_block.resnets.1.conv1.bias, ")


@pytest.mark.parametrize(
    ("source", "make"),
    [
        ("biggan-pytorch", lambda folder: authors.biggan(folder, 32) / "G_ema.pth"),
        ("studiogan", lambda folder: next(authors.studio(folder, 32).glob("model=G*"))),
        ("guided-diffusion", lambda folder: authors.unet(folder, "guided_diffusion_unet", "half_multiplier", "m.pt")),
        ("ddpm", lambda folder: authors.unet(folder, "pytorch_diffusion_unet", "cifar", "model.ckpt")),
        ("vq-vae-2", authors.vq_vae_2),
        (
            "pix2pix",
            lambda folder: authors.translation(folder, "generator_128", "discriminator_16") / "latest_net_G.pth",
        ),
    ],
)
def test_a_part_of_a_state_dict_is_told_from_something_else(
    tmp_path: Path, source: str, make: Callable[[Path], Path]
) -> None:
    loaded = torch.load(make(tmp_path / "w"))
    tensors = loaded.get("state_dict", loaded)
    names = list(tensors)
    torch.save({name: tensors[name] for name in names[len(names) // 3 : 2 * len(names) // 3]}, tmp_path / "x.pth")
    refused(tmp_path, [str(tmp_path / "x.pth")], f"names are like those of {source}: is it a part of such a checkpoint")


def test_a_discriminator_that_lacks_a_tensor_is_refused_and_the_tensor_named(tmp_path: Path) -> None:
    folder = authors.biggan(tmp_path / "weights", 32)
    tensors = torch.load(folder / "D.pth")
    del tensors["blocks.1.0.conv1.weight"]
    torch.save(tensors, folder / "D.pth")
    refused(tmp_path, [str(folder)], r"is not whole, .*G_ema.pth, D.pth lack what is blocks.1.conv1.weight here")


def test_what_the_shapes_do_not_say_is_asked_for_with_the_nearest_recipe(tmp_path: Path) -> None:
    file = authors.unet(tmp_path / "w", "pytorch_diffusion_unet", "cifar", "model.ckpt")
    message = (
        "its tensors do not say data.image_size .*family.variance .*; give --recipe RECIPE, or those .*recipes/ddpm_"
    )
    refused(tmp_path, [str(file), "--from", "ddpm"], message)


def test_what_does_not_fit_a_recipe_is_listed_with_the_nearest_one(tmp_path: Path) -> None:
    file = authors.unet(tmp_path / "w", "pytorch_diffusion_unet", "lsun", "model.ckpt")
    message = (
        r"does not fit ddpm_cifar10: tensors of the unet: .* left over \(.*\), .* missing \(.*\), .*"
        r"of another shape \(unet.* \[.*\], not \[.*\].*; the nearest of the shipped recipes, recipes/ddpm_cifar10.yaml, "
        r"shares .* of .* names, and .* shapes of those"
    )
    refused(tmp_path, [str(file), "--recipe", "recipes/ddpm_cifar10.yaml"], message)


def test_a_recipe_of_another_family_is_refused(tmp_path: Path) -> None:
    folder = authors.biggan(tmp_path / "weights", 32)
    refused(
        tmp_path, [str(folder), "--recipe", "recipes/ddpm_cifar10.yaml"], "family.kind is diffusion, and .* are a gan"
    )


def test_a_discriminator_alone_is_refused(tmp_path: Path) -> None:
    folder = authors.biggan(tmp_path / "weights", 32)
    refused(tmp_path, [str(folder / "D.pth")], "holds the discriminator alone; give the file of the generator")


def test_averaged_weights_are_not_passed_off_as_raw(tmp_path: Path) -> None:
    folder = authors.biggan(tmp_path / "weights", 32)
    refused(
        tmp_path, [str(folder / "G_ema.pth"), "--weights", "raw"], "holds averaged weights, and --weights raw asks for"
    )


def test_a_z_in_one_piece_is_refused(tmp_path: Path) -> None:
    folder = authors.biggan(tmp_path / "weights", 32)
    tensors = torch.load(folder / "G_ema.pth")
    for name in tensors:
        if ".gain.weight" in name or ".bias.weight" in name:
            tensors[name] = tensors[name][:, :5]
    torch.save(tensors, folder / "G_ema.pth")
    refused(tmp_path, [str(folder)], r"its z is in one piece \(no --hier\).*the nearest, .*kind: resnet")


def test_a_table_of_classes_for_each_norm_is_refused(tmp_path: Path) -> None:
    folder = authors.biggan(tmp_path / "weights", 32)
    tensors = torch.load(folder / "G_ema.pth")
    del tensors["shared.weight"]
    torch.save(tensors, folder / "G_ema.pth")
    refused(tmp_path, [str(folder)], r"for each of its norms \(no --G_shared\).*the nearest, .*kind: resnet")


def test_heads_of_an_unknown_order_ask_for_it(tmp_path: Path) -> None:
    file = authors.unet(tmp_path / "w", "guided_diffusion_unet", "new_attention_order", "64x64.pt")
    arguments = [str(file), "family.unet.head_channels=16", SIZE, "family.schedule=cosine", "family.timesteps=10"]
    refused(tmp_path, arguments, "give --attention-order new .* or legacy")
    refused(
        tmp_path, [*arguments, "--from", "ddpm", "--attention-order", "new"], "--attention-order: says nothing of ddpm"
    )


def test_data_of_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    folder = authors.biggan(tmp_path / "weights", 32)
    arguments = [str(folder), "data.train=digits", "data.channels=3"]
    refused(tmp_path, arguments, "was trained on 4 classes, and .* has 10")


def test_an_export_that_exists_is_kept(tmp_path: Path) -> None:
    folder = authors.biggan(tmp_path / "weights", 32)
    (tmp_path / "out").mkdir()
    refused(tmp_path, [str(folder)], "exists already; export into a new folder")


def test_shards_outside_their_folder_are_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../secret.safetensors"}}))
    refused(tmp_path, [str(folder)], "lists no files of this folder")
