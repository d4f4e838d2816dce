"""The pictures of a run, decoded and encoded anew so that a page of them stays small."""

import base64
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image, ImageSequence

from bigtrain.untrusted import one_line, read_plain

MOST_BYTES = 2**26
MOST_PIXELS = 2**26
MOST_FRAMES = 64
MOST_PICTURES = 200
"""Of a run. Of more, those are shown whose steps are spread most evenly."""
LISTED = 5000
LOSSY, ROUNDS = 88, 8
"""The quality of WebP once pictures do not fit as they are, and how often they are made smaller until they fit."""
SMALLEST = 48
"""Pixels of a side below which a picture shows nothing."""
PICTURE_FOLDERS = ("samples", "evaluations", "evaluations/sweeps")
SUFFIXES = (".png", ".webp", ".gif", ".jpg", ".jpeg")
_OF_STEP = re.compile(r"(?:(.+?)_)?step_(\d{1,15})")
_FORMATS = ("PNG", "WEBP", "GIF", "JPEG")


@dataclass(frozen=True)
class PictureFile:
    """`group`: of the pictures that a slider steps through, such as "samples"; `step`: None for a picture of its own."""

    path: Path
    group: str
    step: int | None


@dataclass(frozen=True)
class Picture:
    """An encoded picture. `width`, `height`: of the file, which it is shown as; `scale`: by which it is stored smaller."""

    file: PictureFile
    data: bytes
    kind: str
    width: int
    height: int
    scale: float = 1.0

    @property
    def url(self) -> str:
        return f"data:image/{self.kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Fitted:
    """`remark`: how they differ from their files, if they do."""

    pictures: Sequence[Picture]
    remark: str | None


def find_pictures(run: Path, remarks: list[str]) -> list[PictureFile]:
    """The pictures in samples/ and evaluations/ and in the folder itself, by group and step; at most MOST_PICTURES."""
    found = [
        _named(path, Path(place).name or "pictures")
        for place in (*PICTURE_FOLDERS, "")
        for path in _listed(run / place)
    ]
    found.sort(key=lambda file: (file.step is None, file.group, file.step or 0, str(file.path)))
    if len(found) > MOST_PICTURES:
        remarks.append(
            f"Of {len(found):,} pictures {MOST_PICTURES} are shown, spread evenly over the steps; all are in {run / 'samples'}."
        )
        found = [found[number] for number in _spread(len(found), MOST_PICTURES)]
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        inside = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError:
        return []
    return [path for path in inside[:LISTED] if path.is_file()]


def _named(path: Path, group: str) -> PictureFile:
    match = _OF_STEP.fullmatch(path.stem)
    if match is None:
        return PictureFile(path, group, None)
    return PictureFile(path, one_line(match[1]) if match[1] else group, int(match[2]))


def _spread(count: int, kept: int) -> list[int]:
    """`kept` of the numbers below `count`, the first and the last among them."""
    return [round(number * (count - 1) / (kept - 1)) for number in range(kept)]


def encode_all(
    files: Sequence[PictureFile], remarks: Callable[[str], object], done: Callable[[], object]
) -> list[Picture]:
    """Every picture without loss. `remarks`: is told of files that are no pictures; `done`: called after each."""
    pictures = []
    for file in files:
        try:
            pictures.append(encode(file))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            remarks(f"{one_line(str(file.path))}: is not a picture that can be shown ({one_line(str(error))[:120]})")
        done()
    return pictures


def encode(file: PictureFile, scale: float = 1.0, quality: int | None = None) -> Picture:
    """The picture as WebP: without loss, or of a `quality`, `scale` times as wide. Raises OSError and ValueError.

    WebP without loss is pixel by pixel the same. Sheets of photographs are a sixth to a quarter smaller than as PNG, those of
    digits as large; of a quality of 88 they are a quarter.
    """
    with Image.open(io.BytesIO(read_plain(file.path, MOST_BYTES)), formats=_FORMATS) as image:
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise ValueError(f"has {width} x {height} pixels")
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        most = max(1, min(MOST_FRAMES, MOST_PIXELS // (width * height)))
        frames = [_frame(frame, size) for frame in islice(ImageSequence.Iterator(image), most)]
        duration = image.info.get("duration", 100)
    stream = io.BytesIO()
    how = {"lossless": True} if quality is None else {"quality": quality}
    moving = {"save_all": True, "append_images": frames[1:], "duration": duration, "loop": 0} if frames[1:] else {}
    frames[0].save(stream, format="WEBP", **how, **moving)
    return Picture(file, stream.getvalue(), "webp", width, height, scale)


def _frame(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    image = frame.convert("RGBA" if "A" in frame.getbands() or "transparency" in frame.info else "RGB")
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def fit(pictures: Sequence[Picture], budget: int, done: Callable[[], object]) -> Fitted:
    """The pictures in at most `budget` bytes of a page: as they are; else with little loss; else smaller; else some of them.

    `done`: called after each that is encoded.
    """
    if _size(pictures) <= budget:
        return Fitted(pictures, None)
    scale = 1.0
    smaller = _encoded(pictures, scale, done)
    for _ in range(ROUNDS):
        if _size(smaller) <= budget:
            return Fitted(smaller, _said(len(pictures), len(smaller), scale))
        scale *= max(0.5, 0.95 * math.sqrt(budget / _size(smaller)))
        if scale * max(max(picture.width, picture.height) for picture in pictures) < SMALLEST:
            break
        smaller = _encoded(pictures, scale, done)
    kept = smaller
    while len(kept) > 1 and _size(kept) > budget:
        kept = (
            [smaller[number] for number in _spread(len(smaller), max(2, len(kept) * 3 // 4))]
            if len(kept) > 2
            else kept[:1]
        )
    return Fitted(kept, _said(len(pictures), len(kept), scale))


def _encoded(pictures: Sequence[Picture], scale: float, done: Callable[[], object]) -> list[Picture]:
    """Each one lossy at this scale, unless it is smaller without loss: drawings are."""
    encoded = []
    for picture in pictures:
        lossy = encode(picture.file, scale, LOSSY)
        encoded.append(picture if scale == 1 and len(picture.data) <= len(lossy.data) else lossy)
        done()
    return encoded


def _size(pictures: Sequence[Picture]) -> int:
    """Bytes of a page that they take."""
    return sum(len(picture.data) * 4 // 3 + 200 for picture in pictures)


def _said(found: int, kept: int, scale: float) -> str:
    smaller = f"{100 * scale:.0f} % of their width, and " if scale < 1 else ""
    left_out = f" {found - kept:,} of {found:,} pictures still did not fit, and are left out." if kept < found else ""
    return (
        f"To keep this page small, pictures are stored with {smaller}WebP's loss of quality {LOSSY}; the run folder has them "
        f"as they were drawn.{left_out}"
    )
