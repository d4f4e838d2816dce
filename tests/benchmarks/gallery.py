"""The newest sample pictures of runs on one sheet: python tests/benchmarks/gallery.py FILE.png RUN [RUN ...] [--across 4]

Each is shown whole, shrunk to fit its place, under the name of its run's recipe and its step. recipes/gallery.png is made of
the runs that it names by this command, after `accelerate launch launch/train.py recipes/NAME.yaml` for each.
"""

import argparse
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from bigtrain.recipe import load_recipe
from bigtrain.runs import atomic

SIDE, LINE, GAP = 251, 22, 12
"""Pixels: of a picture at most, of a caption's height, and between two pictures. Digits' pictures are twice as wide."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="FILE.png", type=Path)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    parser.add_argument("--across", type=int, default=4, help="pictures in a row (4)")
    asked = parser.parse_args()
    stream = io.BytesIO()
    sheet([(caption(run), newest(run)) for run in asked.runs], asked.across).save(stream, "PNG", optimize=True)
    atomic.write_bytes(asked.out, stream.getvalue())


def newest(run: Path) -> Path:
    pictures = sorted((run / "samples").glob("step_*.png"))
    if not pictures:
        raise SystemExit(f"{run}: has no samples/step_*.png; set train.sample_every")
    return pictures[-1]


def caption(run: Path) -> str:
    step = int(newest(run).stem.removeprefix("step_"))
    return f"{load_recipe(run / 'recipe.yaml').run.name}, {step:,} steps"


def sheet(captioned: list[tuple[str, Path]], across: int) -> Image.Image:
    down = -(-len(captioned) // across)
    across = min(across, len(captioned))
    whole = Image.new("RGB", (across * (SIDE + GAP) - GAP, down * (SIDE + LINE + GAP) - GAP), "white")
    for number, (text, path) in enumerate(captioned):
        left, top = number % across * (SIDE + GAP), number // across * (SIDE + LINE + GAP)
        ImageDraw.Draw(whole).text((left, top + 4), text, fill="black", font=ImageFont.load_default(13))
        with Image.open(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail((SIDE, SIDE))
        whole.paste(small, (left, top + LINE))
    return whole if any(_is_coloured(path) for _, path in captioned) else whole.convert("L")


def _is_coloured(path: Path) -> bool:
    with Image.open(path) as picture:
        return picture.mode != "L"


if __name__ == "__main__":
    main()
