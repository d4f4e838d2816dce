"""Any image model of timm as a feature network: `timm:NAME`, with the preprocessing of the model's own data configuration.

`timm:vit_large_patch14_dinov2.lvd142m` gives the FD with DINOv2 features (Stein et al. 2023, "Exposing flaws of
generative model evaluation metrics"): images are squashed to 224 x 224 by PIL's bicubic in 8 bits, position embeddings are
interpolated as in DINOv2's own code, and the feature is the normalised class token.
"""

import difflib
import hashlib
import json
import math
import re
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.features.network import Extracted, Features, building
from bigtrain.features.published_weights import existing
from bigtrain.features.resize import SIZES_KEPT, pil_bicubic, pil_bilinear, resize_in_8_bits

DINOV2_SIDE = 224
"""Side in pixels at which FD-DINOv2 is defined; timm's configuration has 518, that of DINOv2's last training phase."""
RESIZES = {"bicubic": pil_bicubic, "bilinear": pil_bilinear}


class TimmFeatures(Features):
    """The pooled features before the classifier, [n, d], and its logits where the model has one."""

    def __init__(self, model: str, weights: str | None, device: torch.device) -> None:
        """`model`: a name in timm, with or without its tag; `weights`: the path of its safetensors or state dict, None:
        from its hub. Raises UserError for a model that timm does not have, or that has no published weights."""
        import timm

        full_name, hub = _published(model)
        path = existing(weights) if weights is not None else _from_hub(full_name, hub)
        with building():
            self._network, config = _build(full_name, path)
        self._network = self._network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self._preprocessing = Preprocessing(config, device)
        classifier = self._network.get_classifier()
        self._classifier = classifier if isinstance(classifier, nn.Linear) else None
        self.device = device
        self.name = f"timm:{full_name}"
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.facts = {
            "kind": "timm",
            "weights": {"file": path.name, "sha256": digest},
            "resize": self._preprocessing.described,
            "classes": self._classifier.out_features if self._classifier is not None else None,
        }
        identity = [self.name, digest, self._preprocessing.described, timm.__version__]  # whatever the file is called
        self.fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        grey = torch.full((1, 3, DINOV2_SIDE, DINOV2_SIDE), 128, dtype=torch.uint8, device=device)
        self.dimensions = self(grey).features.shape[1]

    def _extract(self, images: Tensor) -> Extracted:
        network = self._network
        features = network.forward_head(network.forward_features(self._preprocessing(images)), pre_logits=True)
        features = features.float().flatten(1)
        return Extracted(features, self._classifier(features) if self._classifier is not None else None)


class Preprocessing:
    """timm's evaluation transform (resize by PIL in 8 bits, central crop, normalisation), batched on the device."""

    def __init__(self, config: dict[str, Any], device: torch.device) -> None:
        """`config`: from timm.data.resolve_model_data_config. Raises UserError for a resize or crop that is not supported."""
        self._target: tuple[int, int] = tuple(config["input_size"][1:])
        self._scaled = tuple(math.floor(side / config["crop_pct"]) for side in self._target)
        self._squash = config["crop_mode"] == "squash"
        if config["interpolation"] not in RESIZES or config["crop_mode"] not in ("center", "squash"):
            raise UserError(
                f"evaluation.features: this timm model resizes by {config['interpolation']} and crops by "
                f"{config['crop_mode']}, which is not supported; choose one with {' or '.join(RESIZES)} and center or squash"
            )
        self._resize = RESIZES[config["interpolation"]]
        self._mean, self._std = (
            torch.tensor(config[name], dtype=torch.float32, device=device)[:, None, None] * 255
            for name in ("mean", "std")
        )
        self._device = device
        self._matrices_of = lru_cache(SIZES_KEPT)(self._matrices)
        height, width = self._target
        self.described = (
            f"PIL {config['interpolation']} in 8 bits, {config['crop_mode']}, to {height} x {width} of "
            f"{self._scaled[0]} x {self._scaled[1]}"
        )

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] to the network's input, float32 [n, 3, h, w]."""
        rows, columns = self._matrices_of(int(images.shape[2]), int(images.shape[3]))
        return resize_in_8_bits(images.float(), rows, columns).sub_(self._mean).div_(self._std)

    def _matrices(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The matrices (rows, columns) for images of this size; the crop selects rows of each."""
        scaled = self._scaled
        if not self._squash:
            short = min(height, width)
            scaled = (int(scaled[0] * height / short), int(scaled[0] * width / short))
        return (
            self._cropped(height, scaled[0], self._target[0]),
            self._cropped(width, scaled[1], self._target[1]),
        )

    def _cropped(self, source: int, scaled: int, target: int) -> Tensor:
        first = round((scaled - target) / 2)
        return self._resize(source, scaled)[first : first + target].to(self._device, torch.float32)


def _published(model: str) -> tuple[str, Any]:
    """(name with tag, timm's configuration of the weights)."""
    import timm

    if not timm.is_model_pretrained(model):
        near = difflib.get_close_matches(model, timm.list_pretrained(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"evaluation.features: timm {timm.__version__} has no weights for a model {model!r}{hint}")
    config: Any = timm.get_pretrained_cfg(model)
    return f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture), config


def _from_hub(name: str, config: Any) -> Path:
    """The file in the hub's cache, downloaded first if it is not there; huggingface_hub does so atomically, with a lock."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not config.hf_hub_id:
        raise UserError(f"evaluation.weights: {name} is not on the hub; give the path of its weights")
    file = config.hf_hub_filename or "model.safetensors"
    try:
        return Path(hf_hub_download(config.hf_hub_id, file))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"evaluation.weights: the weights of timm:{name} are not in the hub's cache and could not be fetched ({reason}); "
            f"fetch https://huggingface.co/{config.hf_hub_id}/resolve/main/{file} elsewhere, and give its path with "
            "evaluation.weights=PATH"
        ) from None


def _build(name: str, path: Path) -> tuple[Any, dict[str, Any]]:
    """(the model with its weights, its data configuration)."""
    import timm
    from timm.data.config import resolve_model_data_config

    dinov2 = re.search(r"_patch14(_reg4)?_dinov2", name)
    try:
        # Loaded here with weights_only, because older versions of timm unpickle whatever a file holds.
        state = timm.models.load_state_dict(str(path), weights_only=True)
        if not state:
            raise ValueError("it is empty")
        load: Any = partial(
            timm.create_model, name, pretrained=True, pretrained_cfg_overlay={"state_dict": state, "custom_load": False}
        )
        network = load(img_size=DINOV2_SIDE) if dinov2 else load()
        if dinov2 and not dinov2[1]:
            trained = load().pos_embed
            side = DINOV2_SIDE // network.patch_embed.patch_size[0]
            network.pos_embed = nn.Parameter(dinov2_positions(trained.detach(), side))
    except Exception as error:  # timm may raise anything for a file that is not this model's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"evaluation.weights: {path} does not hold the weights of timm:{name}: {reason}") from None
    network.pretrained_cfg.pop("state_dict", None)  # a second copy of all weights
    config = resolve_model_data_config(network)
    if dinov2:
        config |= {"input_size": (3, DINOV2_SIDE, DINOV2_SIDE), "crop_pct": 1.0, "crop_mode": "squash"}
    return network, config


def dinov2_positions(trained: Tensor, side: int) -> Tensor:
    """Interpolates position embeddings [1, 1 + s * s, d] to side x side patches, [1, 1 + side * side, d].

    As in DINOv2's own code: bicubic, with a scale factor that is too large by a tenth of a patch. timm's interpolation is
    antialiased and gives other features.
    """
    grid = math.isqrt(trained.shape[1] - 1)
    patches = trained[:, 1:].float().unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    factor = (side + 0.1) / grid
    resized = F.interpolate(patches, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([trained[:, :1].float(), resized.flatten(2).transpose(1, 2)], dim=1)
