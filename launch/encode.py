"""Turns shards of images into shards of codes: accelerate launch launch/encode.py RUN INDEX OUT [--flip]

RUN is a trained tokenizer, which encodes with the averaged weights of its newest checkpoint; INDEX is an index of images (or
the word digits, for both of their splits). Writes OUT/SPLIT-000000.tar ... with an index OUT/SPLIT.json, each shard with the
number, the keys and the labels of its shard of images. All ranks share the work. Running it again writes what is missing and
leaves complete shards as they are.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bigtrain import beats
from bigtrain.cli import run_cli, say
from bigtrain.cluster import world
from bigtrain.cluster.launch import join_world
from bigtrain.cluster.watchdog import watching
from bigtrain.data.digits import SPLITS
from bigtrain.data.fields.codes import CodesManifest, EncodedImages, Level
from bigtrain.data.fields.pictures import TRANSFORM, to_images
from bigtrain.data.index import Index
from bigtrain.data.splits import find_images
from bigtrain.data.write.codes import count_codes, encode_shards, index_codes
from bigtrain.errors import RankError, UserError
from bigtrain.families.abilities import Encodes, HasSuccessor
from bigtrain.features.network import full_float32
from bigtrain.inference.model import Model, hang_timeout_s, open_model
from bigtrain.inference.splits import same_on_all
from bigtrain.progress import ProgressBar
from bigtrain.runs import checkpoint
from bigtrain.runs.folder import RunFolder
from bigtrain.sizes import size_key

BATCH_SIZE = 128


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.batch_size < 1:
        raise UserError("--batch-size: must be at least 1")
    limit_s, device = hang_timeout_s(arguments.run), join_world()
    with watching(limit_s) as watchdog:
        watchdog.mark("encodes", patient=True)
        _encode_all(arguments, device)


def _encode_all(arguments: argparse.Namespace, device: torch.device) -> None:
    model = open_model(arguments.run, device)
    tokenizer = model.family.require(Encodes, arguments.run)
    if (arguments.run / "checkpoints").is_dir():
        world.on_main(partial(_keep_checkpoint, arguments, int(model.provenance["step"])))
    spec, data = model.family.spec, model.recipe.data
    for split in SPLITS if arguments.index == "digits" else [""]:
        find = partial(find_images, arguments.index, split, "INDEX", spec.size, data.resize, data.remote, spec.channels)
        index = same_on_all(world.main_first(find), "INDEX")
        codes = _encode(model, index, arguments)
        say(f"{codes.path}: codes of {codes.samples} images; {_usage(codes, device)}")
    words = _what_to_train(model, arguments, codes)
    say(f"next: train a model of these codes ({tokenizer.successors}): accelerate launch launch/train.py {words}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="a tokenizer's run folder or export")
    parser.add_argument("index", metavar="INDEX", help="index of a split of images, or the word digits")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the shards of codes")
    parser.add_argument(
        "--flip",
        action="store_true",
        help="store the codes of each mirrored image too, for models of codes trained with data.flip",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=BATCH_SIZE,
        help="images encoded at a time on each rank (default: %(default)s)",
    )
    return parser


def _keep_checkpoint(arguments: argparse.Namespace, step: int) -> None:
    """Lets the run, which may be trained further, keep the checkpoint that makes the codes: they mean nothing without it."""
    try:
        kept = checkpoint.keep_for(
            RunFolder(arguments.run).checkpoints, step, f"codes in {os.path.realpath(arguments.out)}"
        )
    except FileNotFoundError:
        raise UserError(
            f"{arguments.run}: has deleted its checkpoint of step {step} meanwhile; run this again"
        ) from None
    except OSError as error:
        say(
            f"warning: {arguments.run} cannot be told to keep its checkpoint of step {step} ({error.strerror}), which the "
            "codes need: export it before the run is trained further (launch/export.py)"
        )
    else:
        say(f"{arguments.run} keeps its checkpoint of step {step}, which makes these codes, until {kept} is deleted")


def _tokenizer(model: Model) -> Encodes:
    return model.family.require(Encodes, "RUN")


def _encode(model: Model, index: Index, arguments: argparse.Namespace) -> Index:
    levels = {
        name: Level(codebook_size=level.codebook_size, grid=list(level.grid))
        for name, level in _tokenizer(model).code_levels.items()
    }
    images = EncodedImages(path=index.origin.url or str(index.path.resolve()), fingerprint=index.fingerprint)
    if "resize" in index.variant:
        images["resize"] = index.variant["resize"]
    if index.channels != 3 or "channels" in index.variant:
        images["channels"] = index.channels
    manifest = CodesManifest(model.fingerprint, levels, 2 if arguments.flip else 1, TRANSFORM, images)
    mine = sum(shard.samples for shard in index.shards[world.rank() :: world.size()])
    share = f"{index.split} (this rank's share)" if world.size() > 1 else index.split
    bar = ProgressBar(mine, share, "images", quiet=not world.is_main())

    def progress(images: int) -> None:
        bar.update(images)
        beats.beat()

    try:
        with bar, beats.work("encodes images"):
            records = encode_shards(
                index,
                arguments.out,
                manifest,
                _encoder(model),
                rank=world.rank(),
                world=world.size(),
                batch=arguments.batch_size,
                workers=model.recipe.data.workers,
                progress=progress,
            )
    except RankError:
        if not world.is_main():
            print(file=sys.stderr)  # ends the line of the main rank's progress bar, so that the message has its own
        raise
    all_records = [record for records in world.gather_on_main(records) for record in records]
    write = partial(index_codes, index, arguments.out, manifest, all_records)
    return world.on_main(beats.as_work("writes the index", write))


def _encoder(model: Model) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    tokenizer = _tokenizer(model)

    def encode(pixels: np.ndarray) -> dict[str, np.ndarray]:
        images = to_images(torch.from_numpy(pixels), torch.zeros(len(pixels), dtype=torch.bool), model.device)
        with full_float32(model.device):
            codes = tokenizer.encode(model.weights, images)
        return {level: grid.cpu().numpy() for level, grid in codes.items()}

    return encode


def _usage(codes: Index, device: torch.device) -> str:
    """The share of each level's codes that occur at all, counted over all ranks."""
    words = []
    with beats.work("counts the codes"):
        counts = count_codes(codes, rank=world.rank(), world=world.size())
    for level, count in counts.items():
        used = int((world.sum_over_ranks(torch.from_numpy(count).to(device)) > 0).sum())
        words.append(f"level {level}: {used} of {len(count)} codes are used ({used / len(count):.0%})")
    return ", ".join(words)


def _what_to_train(model: Model, arguments: argparse.Namespace, codes: Index) -> str:
    """The arguments of launch/train.py for a model of the codes."""
    by_split = {path.stem: path for path in sorted(arguments.out.glob("*.json"))}
    train = by_split.pop("train", None)
    held_out = next((by_split[name] for name in ("validation", "val", "test") if name in by_split), None)
    words = [f"data.train={train or codes.path}", f"data.validation={held_out or 'null'}"]
    words += [f"data.image_size={size_key(model.family.spec.size)}"] + (["data.flip=true"] if arguments.flip else [])
    followed = model.family.ability(HasSuccessor)
    words += followed.successor_keys(str(arguments.run)) if followed is not None else []
    return shlex.join(["RECIPE.yaml", *words])


if __name__ == "__main__":
    run_cli(main)
