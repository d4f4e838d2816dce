"""Classifier rejection sampling: of several candidates, keeps the one to whose class a classifier gives the highest probability
(Razavi et al. 2019, section 4.3).

It trades diversity for fidelity, as truncation does for GANs, so the protocol of metrics of such samples includes it.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigtrain.cluster.passes import Reading, together
from bigtrain.data.index import Index
from bigtrain.errors import UserError
from bigtrain.families.data_spec import DataSpec
from bigtrain.features.classifier import find_classifier
from bigtrain.features.network import CHANGED_CHANNELS, full_float32, with_channels
from bigtrain.features.scripts import read_script, run_script, script_name


@dataclass(frozen=True)
class Selection:
    """`candidates`: drawn for each sample; `score`: (images uint8 [n, C, H, W], labels int64 [n]) to float [n], higher is
    better."""

    candidates: int
    score: Callable[[Tensor, Tensor], Tensor]
    facts: dict[str, Any]
    """For the protocol."""

    def best(self, candidates: Iterable[Tensor], labels: Tensor) -> Tensor:
        """The best candidate of each sample, [n, C, H, W]; the first one of equals.

        `candidates` yields images [n, C, H, W], one candidate of every sample at a time.
        """
        kept: Tensor | None = None
        highest = torch.full((len(labels),), -torch.inf, device=labels.device)
        for images in candidates:
            scores = self.score(images, labels)
            better = scores > highest
            kept = images if kept is None else torch.where(better[:, None, None, None], images, kept)
            highest = torch.where(better, scores, highest)
        assert kept is not None, "there are no candidates"
        return kept


def find_selection(
    candidates: int,
    classifier: str,
    spec: DataSpec,
    train: Callable[[], tuple[Index, Index | None]],
    reading: Reading,
    device: torch.device,
) -> Selection:
    """`classifier`: `classifier` (trained on the labels of the split that `train` gives, and used for nothing else), or the
    path of a TorchScript network, or the word that is stored of one: net(uint8 [n, 3, H, W]) -> logits [n, classes], which
    sees grey as three equal channels.

    Every rank calls it. Raises UserError and Stopped.
    """
    if classifier == "classifier":
        trained = find_classifier(*train(), "selector", reading, device)
        facts = trained.protocol([spec.channels])
        return Selection(candidates, trained.score, {"candidates": candidates, "classifier": facts})
    data, network = together("opens the classifier", lambda: _load(classifier, spec, device))

    def score(images: Tensor, labels: Tensor) -> Tensor:
        with full_float32(device):
            return network(with_channels(images, 3)).float().log_softmax(1).gather(1, labels[:, None])[:, 0]

    facts = {"name": script_name(classifier), "fingerprint": hashlib.sha256(data).hexdigest(), "kind": "TorchScript"}
    if spec.channels != 3:
        facts["channels"] = CHANGED_CHANNELS[3]
    return Selection(candidates, score, {"candidates": candidates, "classifier": facts})


def _load(given: str, spec: DataSpec, device: torch.device) -> tuple[bytes, Any]:
    classes, (height, width) = len(spec.classes), spec.size
    remedy = (
        f"give `classifier`, or a TorchScript network from uint8 images [n, 3, {height}, {width}] to logits "
        f"[n, {classes}]"
    )
    data, name = read_script(given, "evaluation.classifier"), script_name(given)
    grey = torch.full((2, 3, height, width), 128, dtype=torch.uint8, device=device)
    try:
        network = run_script(name, data, device)
        with full_float32(device):
            logits = network(grey)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"the classifier {name} cannot be used: {reason}; {remedy}") from None
    if not isinstance(logits, Tensor) or logits.shape != (2, classes) or not logits.is_floating_point():
        output = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the classifier {name} gives {output} for 2 images of {classes} classes; {remedy}")
    return data, network
