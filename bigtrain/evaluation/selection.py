"""Classifier rejection sampling: of several candidates the one that a classifier is surest of (Razavi et al. 2019, 4.3).

It trades diversity for fidelity, as truncation does for GANs, so the protocol of what is measured on such samples says so.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigtrain.data.index import Index
from bigtrain.errors import UserMistake
from bigtrain.evaluation.classifier import find_classifier
from bigtrain.evaluation.features import full_float32
from bigtrain.evaluation.ranks import Reading, together


@dataclass(frozen=True)
class Selection:
    """`candidates` for each sample; `score`: (images uint8 [n, 3, H, W], labels int64 [n]) to float [n], higher is better."""

    candidates: int
    score: Callable[[Tensor, Tensor], Tensor]
    facts: dict[str, Any]
    """What of it belongs in a protocol."""

    def best(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of images [n * candidates, 3, H, W], candidates of one sample after each other, the best of each: [n, 3, H, W]."""
        scores = self.score(images, labels.repeat_interleave(self.candidates)).view(-1, self.candidates)
        rows = torch.arange(len(labels), device=images.device)
        return images.view(-1, self.candidates, *images.shape[1:])[rows, scores.argmax(1)]


def find_selection(
    candidates: int,
    classifier: str,
    train: Callable[[], tuple[Index, Index | None]],
    reading: Reading,
    device: torch.device,
) -> Selection:
    """`classifier`: `classifier` (trained on the labels of the split that `train` gives, and used for nothing else), or the
    path of a TorchScript network net(uint8 [n, 3, H, W]) -> logits [n, classes].

    Every rank calls it. Raises UserMistake and Stopped.
    """
    if classifier == "classifier":
        trained = find_classifier(*train(), "selector", reading, device)
        return Selection(candidates, trained.score, {"candidates": candidates, "classifier": trained.protocol()})
    data, network = together(lambda: _load(classifier, device))

    def score(images: Tensor, labels: Tensor) -> Tensor:
        with full_float32(device):
            return network(images).float().log_softmax(1).gather(1, labels[:, None])[:, 0]

    facts = {"name": Path(classifier).name, "fingerprint": hashlib.sha256(data).hexdigest(), "kind": "TorchScript"}
    return Selection(candidates, score, {"candidates": candidates, "classifier": facts})


def _load(path: str, device: torch.device) -> tuple[bytes, Any]:
    try:
        data = Path(path).read_bytes()
        return data, torch.jit.load(io.BytesIO(data), map_location=device).eval()
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserMistake(
            f"the classifier {path} cannot be read: {reason}; give `classifier`, or a TorchScript network from uint8 images "
            "[n, 3, H, W] to logits"
        ) from None
