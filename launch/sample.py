"""Draws samples by class: python launch/sample.py RUN_OR_EXPORT --out FILE.png [--npz FILE.npz]

--out FILE.png: a grid, one class a row. --out FOLDER: numbered PNGs. --npz: the sample file that public FID evaluators read
(arr_0: uint8 [n, H, W, C], arr_1: int64 labels). Sample i depends only on the seed, i and its class.

--reconstruct SPLIT.json: rows of real images, each above the row of their reconstructions, for models that can reconstruct.

Each family adds its own options: RUN_OR_EXPORT --help shows them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bigtrain.cli import add_flags, from_flags, run_cli, say
from bigtrain.cluster.launch import join_world
from bigtrain.data.splits import find_images
from bigtrain.errors import UserError
from bigtrain.inference.model import Model, open_model
from bigtrain.inference.observers import GRID_PER_CLASS, reconstruction_pairs
from bigtrain.options import Options
from bigtrain.pictures import save_grid, save_npz, save_pngs

CLASSIFIER = "classifier"
RECONSTRUCTIONS = 50
"""Number of images that --reconstruct shows."""


def parser_of(options: type[Options] | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", metavar="RUN_OR_EXPORT", type=Path)
    parser.add_argument("--out", type=Path, help="FILE.png for a grid, or a folder for numbered PNGs")
    parser.add_argument(
        "--npz",
        type=Path,
        help="a file of uint8 samples [n, h, w, channels]; public evaluators want three channels, and grey ones have one",
    )
    parser.add_argument(
        "--classes", help="comma-separated class indices or names; default: all, in a grid the first 10"
    )
    parser.add_argument("--per-class", type=int, default=8, help="samples of each class (8)")
    parser.add_argument("--seed", type=int, default=0, help="keys every draw (0)")
    parser.add_argument("--weights", help="averaged weights (ema), a run's own (raw), or the name of an extra average")
    parser.add_argument(
        "--checkpoint", default="newest", help="a run's newest (default), best (train.keep_best), or a step"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="samples drawn at a time (64)")
    parser.add_argument(
        "--candidates",
        type=int,
        default=1,
        help="rejection sampling: draw so many for each sample and keep the best (1: no selection)",
    )
    parser.add_argument(
        "--classifier",
        default=CLASSIFIER,
        help="what selects among them: `classifier`, trained on the spot on the data's labels, or a TorchScript file",
    )
    parser.add_argument(
        "--reconstruct", metavar="SPLIT", help="the index of a split (or `digits`) whose images are reconstructed"
    )
    if options is not None:
        add_flags(parser, options)
    return parser


def main(argv: Sequence[str]) -> None:
    asks_help = {"-h", "--help"} & set(argv)
    # The family's own flags are known only once the model is open; until then their values look like positional arguments.
    models = [word for word in argv if not word.startswith("-") and (Path(word) / "recipe.yaml").exists()]
    if asks_help and not models:
        parser_of().parse_args(argv)
    known = parser_of().parse_known_args([word for word in argv if word not in asks_help])[0]
    model = open_model(
        Path(models[0]) if models else known.what, join_world(), weights=known.weights, which=known.checkpoint
    )
    arguments = parser_of(model.family.sampling_class).parse_args(argv)
    if arguments.out is None and arguments.npz is None:
        raise UserError("give --out FILE.png, --out FOLDER or --npz FILE, where the samples are to be written")
    for flag in ("per_class", "batch_size", "candidates"):
        if getattr(arguments, flag) < 1:
            raise UserError(f"--{flag.replace('_', '-')}: must be at least 1 (given: {getattr(arguments, flag)})")

    suffix = "" if arguments.out is None else arguments.out.suffix.lower()
    if suffix not in ("", ".png"):
        raise UserError(f"--out: {arguments.out}: pictures are written as FILE.png, or into a folder")
    if arguments.reconstruct is not None:
        reconstruct(model, arguments)
        return
    model.require("sample", arguments.what)
    by_class = "by_class" in model.family.capabilities
    if arguments.classes is not None or arguments.candidates > 1:
        flag = "--classes" if arguments.classes is not None else "--candidates"
        model.require("by_class", f"{flag}: {arguments.what}")
    if arguments.classifier != CLASSIFIER and arguments.candidates == 1:
        raise UserError("--classifier selects among candidates; give --candidates N as well")
    as_grid = arguments.npz is None and suffix == ".png"
    chosen = model.family.spec.find_classes(arguments.classes)
    if arguments.classes is None and as_grid:
        chosen = chosen[:10]
    labels = [label for label in chosen for _ in range(arguments.per_class)]
    sampling = from_flags(model.family.sampling, arguments)
    selection = model.selection(arguments.candidates, arguments.classifier)
    sampler = model.sampler(arguments.seed, sampling, selection)
    images = sampler.draw_all(labels, arguments.batch_size)
    if suffix == ".png":
        save_grid(arguments.out, images, columns=arguments.per_class)
    elif arguments.out is not None:
        save_pngs(arguments.out, images)
    if arguments.npz is not None:
        save_npz(arguments.npz, images, labels if by_class else None)
    written = " and ".join(str(path) for path in (arguments.out, arguments.npz) if path is not None)
    say(f"{len(labels)} samples of step {model.provenance['step']}: {written}")


def reconstruct(model: Model, arguments: argparse.Namespace) -> None:
    """--reconstruct: writes rows of images and of their reconstructions as a grid."""
    model.require("reconstruct", arguments.what)
    if arguments.npz is not None or arguments.out.suffix.lower() != ".png":
        raise UserError("--reconstruct: pairs are written as one grid; give --out FILE.png, and no --npz")
    for flag in ("classes", "per_class", "seed", "candidates"):
        if getattr(arguments, flag) != parser_of().get_default(flag):
            raise UserError(f"--{flag.replace('_', '-')} is for samples, and --reconstruct draws none; leave it out")
    spec, data, where = model.family.spec, model.recipe.data, arguments.reconstruct
    images = find_images(where, "validation", "--reconstruct", spec.size, data.resize, data.remote, spec.channels)
    pairs = reconstruction_pairs(model.reconstruct, images, RECONSTRUCTIONS, model.device)
    save_grid(arguments.out, pairs.cpu(), columns=GRID_PER_CLASS)
    say(f"{len(pairs) // 2} images and their reconstructions at step {model.provenance['step']}: {arguments.out}")


if __name__ == "__main__":
    run_cli(main)
