"""The manifest of an export: the size and sha256 of its files, by which whoever opens it notices damage.

manifest.json lists all of them. From the hub diffusers fetches model_index.json and the files in the components' folders alone,
so the digests of those are in model_index.json too, as JSON text under a private key that diffusers ignores. Exports of earlier
versions have neither: of these it is checked that they hold all tensors of their networks and no others.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from bigtrain.progress import ProgressBar
from bigtrain.runs import atomic
from bigtrain.untrusted import check_plain, open_plain, read_json

NAME, INDEX = "manifest.json", "model_index.json"
DIGESTS = "_bigtrain_files"
"""The key of model_index.json."""
MOST_FILES = 10_000
OWN_MODULES = ("bigtrain.exchange.pipeline", "bigtrain.pipelines.pipeline")
"""The modules that exports name, of this version and of earlier ones."""


def write(folder: Path) -> None:
    """Writes the manifest of a folder that is otherwise complete, and flushes all of it to the disk."""
    index = read_json(folder / INDEX)
    components = {name for name in index if not name.startswith("_")}
    names = sorted(_files(folder))
    sizes = {name: (folder / name).stat().st_size for name in names}
    with ProgressBar(sum(sizes.values()), "checksums", "B", unit_scale=True, leave=False) as bar:
        digests = {name: atomic.sha256_of(folder / name, bar.update) for name in names}
    loaded = {name: digests[name] for name in names if "/" in name and name.partition("/")[0] in components}
    index |= {DIGESTS: json.dumps(loaded)}
    atomic.write_flushed(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    sizes[INDEX], digests[INDEX] = (folder / INDEX).stat().st_size, atomic.sha256_of(folder / INDEX)
    files = {name: {"size": sizes[name], "sha256": digests[name]} for name in names}
    for name in files:
        atomic.sync(folder / name)
    atomic.write_flushed(folder / NAME, (json.dumps({"format": 1, "files": files}, indent=2) + "\n").encode())
    for inner in {(folder / name).parent for name in files}:
        atomic.sync_folder(inner)


def check(folder: Path) -> None:
    """Raises OSError or ValueError if the files of an export are not those that were written, or are no plain files.

    Files beside the components' folders may be added, such as evaluations.
    """
    present = set(_files(folder))
    components = _components(folder)
    expected = _expected(folder)
    if expected is None:
        return
    for name, facts in expected.items():
        if name not in present:
            raise ValueError(f"{name} is missing")
        if (folder / name).stat().st_size != facts.get("size", (folder / name).stat().st_size):
            raise ValueError(f"{name} has another size than was written")
        if atomic.sha256_of(folder / name) != facts["sha256"]:
            raise ValueError(f"{name} is not what was written")
    for name in sorted(present - expected.keys()):
        if name.partition("/")[0] in components:
            raise ValueError(f"{name} is not in its {NAME}")


def same(folder: Path, other: Path) -> bool:
    """Whether a folder is whole, and the same export as another that was just written. Raises OSError."""
    try:
        check(folder)
    except ValueError:
        return False
    return (folder / NAME).read_bytes() == (other / NAME).read_bytes()


def check_loaded(components: Mapping[str, Any]) -> None:
    """Raises OSError or ValueError if the components of a pipeline, by name, came from the folder of an export whose files are
    not those that were written, or whose tensors are not those of the networks."""
    for name, component in components.items():
        came_from = getattr(getattr(component, "config", None), "_name_or_path", None)
        if not isinstance(component, nn.Module) or not came_from or not (Path(came_from).parent / INDEX).is_file():
            continue
        check(Path(came_from).parent)
        check_tensors(Path(came_from), component, name)


def check_tensors(folder: Path, network: nn.Module, component: str) -> None:
    """Raises OSError or ValueError unless the safetensors files of a component hold each tensor of its network, and no other:
    diffusers leaves what is missing at random."""
    stored: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        open_plain(path).close()
        try:
            with safe_open(path, framework="pt") as file:
                stored |= set(file.keys())
        except SafetensorError as error:
            raise ValueError(f"{component}/{path.name}: {error}") from None
    wanted = set(network.state_dict())
    for names, what in ((wanted - stored, "lack"), (stored - wanted, "hold, and its networks do not,")):
        if names:
            raise ValueError(f"the weights of {component} {what} {len(names)} tensors, such as {min(names)}")


def _expected(folder: Path) -> dict[str, dict[str, Any]] | None:
    """By file, its sha256, and its size where that is known; None in an export of an earlier version."""
    index = read_json(folder / INDEX)
    if (folder / NAME).exists():
        listed = read_json(folder / NAME)
        files = listed.get("files") if isinstance(listed, dict) else None
        if not isinstance(files, dict) or INDEX not in files or not all(map(_is_entry, files.values())):
            raise ValueError(f"{NAME} cannot be read")
        return files
    if DIGESTS not in index:
        return None
    digests = json.loads(index[DIGESTS]) if isinstance(index[DIGESTS], str) else None
    if not isinstance(digests, dict):
        raise ValueError(f"{INDEX}: {DIGESTS} cannot be read")
    return {name: {"sha256": digest} for name, digest in digests.items()}


def _is_entry(facts: Any) -> bool:
    return isinstance(facts, dict) and isinstance(facts.get("sha256"), str) and isinstance(facts.get("size"), int)


def _components(folder: Path) -> list[str]:
    """The names of the components that model_index.json lists. Raises ValueError if one is of neither diffusers nor bigtrain:
    its class would be looked up in whatever module it names."""
    index = read_json(folder / INDEX)
    if not isinstance(index, dict):
        raise ValueError(f"{INDEX} holds no mapping")
    components = {name: value for name, value in index.items() if not name.startswith("_")}
    for name, value in components.items():
        known = isinstance(value, list) and len(value) == 2 and value[0] in ("diffusers", *OWN_MODULES)
        if not known or (value[0] in OWN_MODULES and value[1] != "ExportedModel"):
            raise ValueError(f"{INDEX}: {name} is of neither diffusers nor bigtrain")
    return list(components)


def _files(folder: Path, prefix: str = "", left: list[int] | None = None) -> Iterator[str]:
    """The names of all files but the manifest, relative to the folder. Links to files are followed, as the hub's cache has
    them; links to folders are not. Raises OSError if one is no plain file, and ValueError for more than MOST_FILES."""
    left = [MOST_FILES] if left is None else left
    with os.scandir(folder / prefix) as entries:
        for entry in entries:
            left[0] -= 1
            if left[0] < 0:
                raise ValueError(f"it holds more than {MOST_FILES} files")
            if entry.is_dir(follow_symlinks=False):
                yield from _files(folder, f"{prefix}{entry.name}/", left)
            elif prefix or entry.name != NAME:
                check_plain(entry.stat(), entry.path)
                yield f"{prefix}{entry.name}"
