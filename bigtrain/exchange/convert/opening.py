"""From a path to the tensors of a checkpoint by component, and the source that they are of."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bigtrain.errors import UserError, some_of
from bigtrain.exchange.convert.files import read_json_beside, read_weights
from bigtrain.exchange.convert.registry import AUTO, SOURCES, find_source, nearest, recognised
from bigtrain.exchange.convert.source import Checkpoint, Source
from bigtrain.exchange.convert.sources.diffusers_unets import CONFIG, SCHEDULER, Diffusers
from bigtrain.untrusted import looked_for, read_plain

MODEL_INDEX = "model_index.json"
NETWORK, NETWORK_AVERAGE = "unet", "unet_ema"
"""The folders of a pipeline of diffusers; its example scripts save the second one beside the first."""
WEIGHTS = "diffusion_pytorch_model"
CARD = "README.md"
MOST_SHARDS = 10_000


def open_checkpoint(path: Path, source: str, order: str | None, weights: str) -> tuple[Source, Checkpoint]:
    """`source`: a name of the registry, or auto; `weights`: ema (averages where there are any) or raw. Raises UserError."""
    if source != AUTO:
        find_source(source, order)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder{looked_for(path)}")
    if source in (AUTO, Diffusers.name) and path.is_dir() and _is_of_diffusers(path):
        return find_source(Diffusers.name, order), _of_diffusers(path, weights)
    file = _main_file(path, source, weights) if path.is_dir() else path
    tensors, beside, nested = read_weights(file, averaged=weights == "ema")
    found = _source_of(file, tensors, source, order)
    component = found.component_of(tensors)
    if component != found.main:
        raise UserError(
            f"{file}: holds the {component} alone; give the file of the {found.main}, beside which it is found"
        )
    said = _said_weights(file, found, nested)
    if weights == "raw" and said == "ema":
        raise UserError(
            f"{file}: holds averaged weights, and --weights raw asks for those of training; give their file"
        )
    parts, files = {component: tensors}, {component: file}
    other = found.beside(file.name)
    if other is not None and (file.parent / other).is_file():
        others, _, _ = read_weights(file.parent / other)
        role = found.component_of(others)
        if role in (None, component):
            raise UserError(
                f"{file.parent / other}: lies beside {file.name}, and its names are not those of {found.name}; move it away"
            )
        parts[role], files[role] = others, file.parent / other
    config = _configs(file) if found.name == Diffusers.name else {}
    return found, Checkpoint(path, parts, files, said, _step(file, beside), config)


def _source_of(file: Path, tensors: Mapping[str, Tensor], source: str, order: str | None) -> Source:
    """Raises UserError if the tensors are not of the source, or of none."""
    known = recognised(tensors)
    if source != AUTO and source not in known:
        remedy = f"; they are those of {' or '.join(known)}: --from {known[0]}" if known else _half(tensors)
        raise UserError(f"{file}: its names ({some_of(tensors, 3)}) are not those of {source}{remedy}")
    if not known:
        raise UserError(
            f"{file}: its names ({some_of(tensors, 3)}) are those of no source (there are: {', '.join(SOURCES)})"
            + _half(tensors)
        )
    if source == AUTO and len(known) > 1:
        raise UserError(f"{file}: is of {' or of '.join(known)}, whose names are the same; say which by --from")
    return find_source(known[0] if source == AUTO else source, order)


def _half(tensors: Mapping[str, Tensor]) -> str:
    """Of which source they seem to be a part, to end a message; nothing where they are like none."""
    near = nearest(tensors)
    if near is None:
        return ""
    return f"; {near[1]} of its {len(tensors)} names are like those of {near[0]}: is it a part of such a checkpoint?"


def _main_file(folder: Path, source: str, weights: str) -> Path:
    """The file in a folder of checkpoints that holds such weights. Raises UserError if there is none, or no single one."""
    sources = [SOURCES[source]] if source != AUTO else list(SOURCES.values())
    for wanted in ("ema", "raw") if weights == "ema" else ("raw",):
        found = []
        for kind in sources:
            for pattern in kind.files[wanted]:
                if matches := sorted(folder.glob(pattern)):
                    found.append(matches)
                    break
        files = sorted({file for matches in found for file in matches})
        if len(files) > 1:
            raise UserError(
                f"{folder}: holds {len(files)} such checkpoints ({', '.join(file.name for file in files[:5])}); give one"
            )
        if files:
            return files[0]
    named = source if source != AUTO else "any source"
    raise UserError(f"{folder}: holds no checkpoint by the names that {named} gives; give the file itself")


def _said_weights(file: Path, source: Source, nested: bool) -> str:
    """ema or raw, as the file or its name says; published where neither does."""
    averaged = re.search(r"(^|[^a-z])ema([^a-z]|$)", file.stem.lower()) or file.parent.name.lower().startswith("ema_")
    if nested or averaged:
        return "ema"
    return "raw" if any(file.match(pattern) for pattern in source.files["raw"]) else "published"


def _step(file: Path, beside: Mapping[str, Any]) -> int:
    """The step of training, as the file or its name says; 0 where neither does."""
    if isinstance(beside.get("step"), int):
        return max(int(beside["step"]), 0)
    found = re.search(r"(?:step=|_|model-?)(\d{3,9})$", file.stem)
    return int(found[1]) if found else 0


def _is_of_diffusers(folder: Path) -> bool:
    return (folder / MODEL_INDEX).is_file() or (folder / CONFIG).is_file()


def _of_diffusers(folder: Path, weights: str) -> Checkpoint:
    """Of a pipeline's folder or of its network's."""
    network, said = folder, "published"
    if (folder / MODEL_INDEX).is_file():
        averaged = weights == "ema" and (folder / NETWORK_AVERAGE / CONFIG).is_file()
        network, said = folder / (NETWORK_AVERAGE if averaged else NETWORK), "ema" if averaged else "published"
        if not (network / CONFIG).is_file():
            raise UserError(f"{folder}: is a pipeline without {NETWORK}/{CONFIG}, and so none of a UNet2DModel")
    files = _weight_files(network)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_weights(file)[0]
    source = find_source(Diffusers.name, None)
    if source.component_of(tensors) is None:
        raise UserError(f"{network}: its names ({some_of(tensors, 3)}) are not those of a UNet2DModel")
    named = {NETWORK if len(files) == 1 else file.name: file for file in files}
    return Checkpoint(folder, {NETWORK: tensors}, named, said, 0, _configs(network / WEIGHTS), _licence(folder / CARD))


def _licence(card: Path) -> str | None:
    """The licence that a model card's first lines name."""
    try:
        lines = read_plain(card, 2**20).decode(errors="replace").splitlines()
    except OSError:
        return None
    head = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    return next((line.partition(":")[2].strip()[:100] for line in head if line.startswith("license:")), None)


def _weight_files(folder: Path) -> list[Path]:
    """The files of a network's weights: one, or the shards that an index lists. Raises UserError."""
    index = folder / f"{WEIGHTS}.safetensors.index.json"
    if index.is_file():
        content = read_json_beside(index)
        listed = content.get("weight_map") if isinstance(content, dict) else None
        names = (
            set(listed.values())
            if isinstance(listed, dict) and all(isinstance(v, str) for v in listed.values())
            else set()
        )
        if not names or len(names) > MOST_SHARDS or any(Path(name).name != name for name in names):
            raise UserError(f"{index}: lists no files of this folder")
        return [folder / name for name in sorted(names)]
    for name in (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.bin"):
        if (folder / name).is_file():
            return [folder / name]
    raise UserError(f"{folder}: has neither {WEIGHTS}.safetensors nor {WEIGHTS}.bin")


def _configs(file: Path) -> dict[str, Any]:
    """The configurations beside a file of weights: of the network, and of the scheduler where it lies in a pipeline."""
    paths = {
        CONFIG: [file.parent / CONFIG],
        SCHEDULER: [file.parent / SCHEDULER, file.parent.parent / "scheduler" / SCHEDULER],
    }
    found = {name: next((path for path in places if path.is_file()), None) for name, places in paths.items()}
    return {name: read_json_beside(path) for name, path in found.items() if path is not None}
