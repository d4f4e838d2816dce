"""The Inception of FID (Heusel et al. 2017): the network of 2015-12-05 with 2048 features, in clean-fid's three modes.

The modes share the network and differ in how images are resized to 299 x 299 and scaled. That changes a FID by more than
most papers improve it, so the mode is part of the protocol:

    clean               PIL's bicubic, antialiased, not rounded to 8 bits (Parmar et al. 2022)
    legacy_tensorflow   TensorFlow 1's bilinear, as the original code and torch-fidelity
    legacy_pytorch      torch's bilinear, as pytorch-fid
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.features.network import Extracted, Features, building, load_script
from bigtrain.features.published_weights import Published, published_file
from bigtrain.features.resize import SIZES_KEPT, Resize, Weights, pil_bicubic, tensorflow1_bilinear, torch_bilinear
from bigtrain.features.scripts import A_PROGRAM, BYTES, is_named, is_script_file
from bigtrain.untrusted import read_plain

InceptionMode = Literal["clean", "legacy_tensorflow", "legacy_pytorch"]

SIDE = 299
TORCHSCRIPT = Published(
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
STATE_DICT = Published(
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
PIECE_ON_CPU = 8
"""Images per call of the network on a CPU: more would not fit its caches, and are not faster."""


@dataclass(frozen=True)
class _Mode:
    weights: Published
    resize: Weights
    described: str
    scale: float
    shift: float
    """The network's input is pixel * scale + shift."""


MODES: dict[str, _Mode] = {
    "clean": _Mode(TORCHSCRIPT, pil_bicubic, "PIL bicubic, antialiased, in float32", 1 / 128, -1.0),
    "legacy_tensorflow": _Mode(TORCHSCRIPT, tensorflow1_bilinear, "TensorFlow 1 bilinear", 1 / 128, -1.0),
    "legacy_pytorch": _Mode(STATE_DICT, torch_bilinear, "torch bilinear, half-pixel centres", 2 / 255, -1.0),
}


class InceptionFeatures(Features):
    """FID's features [n, 2048] of images of any size, and the 1008 logits of the Inception Score.

    The logits have no bias, as in the original Inception Score and in torch-fidelity.
    """

    def __init__(self, mode: InceptionMode, weights: str | None, device: torch.device) -> None:
        """`weights`: the path of the public TorchScript file (`layers`, `output`) or of a state dict with torchvision's names,
        which hold the same network; None: the file that clean-fid uses for this mode. Raises UserError."""
        self._mode = MODES[mode]
        path = published_file(self._mode.weights, weights)
        data = read_plain(path, BYTES)
        self._trunk, self._head = _load(path, data, device)
        self.device = device
        self.name = f"Inception 2015-12-05, {mode}"
        self.dimensions = self._head.shape[1]
        digest = hashlib.sha256(data).hexdigest()
        self.facts = {
            "kind": "FID Inception",
            "weights": {"file": path.name, "sha256": digest},
            "resize": f"{self._mode.described}, to {SIDE} x {SIDE}",
            "classes": self._head.shape[0],
        }
        identity = [mode, digest, self.facts["resize"]]  # whatever the file is called
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self._resize = lru_cache(SIZES_KEPT)(self._make_resize)

    def _extract(self, images: Tensor) -> Extracted:
        pieces = images.split(PIECE_ON_CPU if self.device.type == "cpu" else max(len(images), 1))
        features = torch.cat([self._trunk(self.prepared(piece)).float().flatten(1) for piece in pieces])
        return Extracted(features, features @ self._head.T)

    def prepared(self, images: Tensor) -> Tensor:
        """The network's input for uint8 images [n, 3, H, W]: float32 [n, 3, 299, 299] in about [-1, 1]."""
        # Scaling before the resize, whose weights sum to one, gives the same and is cheaper: the image is smaller.
        scaled = images.float().mul_(self._mode.scale).add_(self._mode.shift)
        return self._resize(*images.shape[2:])(scaled)

    def _make_resize(self, height: int, width: int) -> Resize:
        """The resize from this size to SIDE x SIDE."""
        rows, columns = (self._mode.resize(side, SIDE).to(self.device, torch.float32) for side in (height, width))
        scale, shift = self._mode.scale, self._mode.shift
        return Resize(rows, columns, shift, 255 * scale + shift)


def _load(path: Path, data: bytes, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """(network from images to features, weight of the logits [k, d]), from either form of the file."""
    remedy = (
        "give the public inception-2015-12-05.pt or pt_inception-2015-12-05-6726825d.pth with evaluation.weights=PATH"
    )
    is_script = is_script_file(io.BytesIO(data))
    if is_script and hashlib.sha256(data).hexdigest() != TORCHSCRIPT.sha256 and not is_named(data):
        raise UserError(
            f"evaluation.weights: {path}: {A_PROGRAM}: give it with evaluation.weights=PATH, if you trust it"
        )
    try:
        if is_script:
            script: Any = load_script(path.name, data, device)
            return script.layers, script.output.weight.detach()
        state = safetensors.torch.load(data) if path.suffix == ".safetensors" else _state_dict(data)
        with building():
            network = build_inception()
        network.load_state_dict(state)
    except Exception as error:  # torch may raise anything for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"evaluation.weights: {path} is not the Inception of FID: {reason}; {remedy}") from None
    head = network.fc.weight.detach().to(device)
    network.fc = nn.Identity()
    return network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last), head


def _state_dict(data: bytes) -> dict[str, Tensor]:
    import pickle

    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("it holds more than weights, so it is not opened") from None
    if not isinstance(state, dict):
        raise ValueError("it holds no state dict")
    return state


def build_inception() -> Any:
    """The architecture with its 1008-way `fc`, not initialised, with torchvision's names (23,859,904 weights with fc)."""
    # Takes a second to import.
    import torchvision
    from cleanfid import inception_pytorch as fid

    network = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    for name, channels in {"5b": (192, 32), "5c": (256, 64), "5d": (288, 64)}.items():
        setattr(network, f"Mixed_{name}", fid.FIDInceptionA(channels[0], pool_features=channels[1]))
    for name, width in {"6b": 128, "6c": 160, "6d": 160, "6e": 192}.items():
        setattr(network, f"Mixed_{name}", fid.FIDInceptionC(768, channels_7x7=width))
    network.Mixed_7b, network.Mixed_7c = fid.FIDInceptionE_1(1280), fid.FIDInceptionE_2(2048)
    return network
