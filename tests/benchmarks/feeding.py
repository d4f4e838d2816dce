"""How many CPU cores one H200 needs to be fed, for each recipe that reads images or codes from shards.

    OMP_NUM_THREADS=1 python tests/benchmarks/feeding.py FOLDER recipes/*.yaml

What a GPU takes is the plan's arithmetic (FLOPs of a step at 40 % of the peak; a GPU that reaches less needs less). What a
core gives is measured: the stream with one worker, uint8 batches, per CPU second of both processes. FOLDER holds CIFAR-10's
training images as CLASS/*.jpg: 32 pixels are these, larger sides the synthetic photographs of loader.py, cut to squares.
Nothing is kept decoded from one epoch to the next. Codes are those of a made-up tokenizer with the recipe's levels.
"""

import argparse
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from loader import PHOTOGRAPHS, Photographs, make_index, ours, rates
from PIL import Image

from bigtrain.data.fields.codes import CodesManifest, EncodedImages
from bigtrain.data.fields.pictures import TRANSFORM
from bigtrain.data.index import Index
from bigtrain.data.read import reader
from bigtrain.data.write.codes import encode_shards, index_codes
from bigtrain.data.write.convert import convert
from bigtrain.plan import Cluster, plan
from bigtrain.recipe import Recipe, load_recipe

IMAGENETS = ("vqvae2_imagenet", {"top": (32, 32), "bottom": (64, 64)})
CODES: dict[str, tuple[str, dict[str, tuple[int, int]]]] = {
    "pixelcnn_cifar10": ("vqvae_cifar10", {"codes": (8, 8)}),
    "prior_top_imagenet": IMAGENETS,
    "prior_bottom_imagenet": IMAGENETS,
}
"""The tokenizer's recipe and the grids of its levels, for recipes that read codes."""
BATCH = 64


def squares(source: Path, side: int, folder: Path) -> Path:
    """1,000 squares of `side` pixels as CLASS/*.jpg."""
    if side == 32:
        return source
    names, photographs = sorted(source.glob("*/*.jpg")), Photographs()
    for name in names[:: max(1, len(names) // PHOTOGRAPHS)][:PHOTOGRAPHS]:
        path = folder / name.relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(convert(photographs.enlarge(Image.open(name)), (side, side), "jpg").data)
    return folder


def codes_of(index: Index, levels: dict[str, tuple[int, int]], out: Path) -> Index:
    draws = np.random.default_rng(0)

    def encode(pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {level: draws.integers(0, 512, (len(pixels), *shape)) for level, shape in levels.items()}

    described: Any = {level: {"grid": list(shape), "codebook_size": 512} for level, shape in levels.items()}
    images = EncodedImages(path=str(index.path), fingerprint=index.fingerprint)
    manifest = CodesManifest("0" * 64, described, 2, TRANSFORM, images)
    how: Any = {"rank": 0, "world": 1, "batch": 500, "workers": 2, "progress": lambda _: None}
    return index_codes(index, out, manifest, encode_shards(index, out, manifest, encode, **how))


def rate_of(index: Index, seconds: float, rounds: int) -> float:
    side = partial(ours, index, workers=1, batch=BATCH, finish=False)
    return float(np.median([rates(side(), BATCH, seconds)[1] for _ in range(rounds)]))


def wanted(recipe: Recipe) -> float:
    """Samples that one H200 reads in a second, by the plan."""
    text = plan(recipe, Cluster(1, 1, 1000))
    read, seconds = (
        re.search(r"reads ([\d,]+) images", text),
        re.search(r"of NVIDIA H200 .*?: ([\d.e-]+) s a step", text),
    )
    assert read, "the plan has other words now"
    assert seconds, "the plan has other words now"
    return int(read[1].replace(",", "")) / float(seconds[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("recipes", metavar="RECIPE", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=2.0, help="that a rate is measured for (2)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (3); the median counts")
    asked = parser.parse_args()
    measure = partial(rate_of, seconds=asked.seconds, rounds=asked.rounds)
    reader.RESIDENT_BYTES = 0
    known: dict[Any, tuple[Index, float]] = {}
    print(f"{'recipe':24}{'reads':>32}{'an H200 takes':>16}{'a core gives':>14}{'cores':>8}")
    with tempfile.TemporaryDirectory() as temporary:
        for file in asked.recipes:
            if "digits" in file.stem:  # one GPU is not what they are for
                continue
            tokenizer, levels = CODES.get(file.stem, (None, {}))
            recipe = load_recipe(file, [f"family.tokenizer={file.with_stem(tokenizer)}"] if tokenizer else [])
            side = recipe.data.image_size
            assert isinstance(side, int), f"{file}: sizes other than squares are not measured"
            folder = Path(temporary) / str(side)
            if side not in known:
                images = make_index(squares(asked.folder, side, folder / "pictures"), folder / "shards", "jpg")
                known[side] = images, measure(images)
            key, what = side, f"{side} x {side} JPEG"
            if levels:
                key, what = str(levels), "codes of " + " and ".join(f"{h} x {w}" for h, w in levels.values())
                if key not in known:
                    codes = codes_of(known[side][0], levels, folder / "codes")
                    known[key] = codes, measure(codes)
            takes, gives = wanted(recipe), known[key][1]
            print(f"{file.stem:24}{what:>32}{takes:>14,.0f}/s{gives:>12,.0f}/s{takes / gives:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
