"""Small classifiers that are trained on the spot, on the data's own labels, so that evaluation needs no download.

They have three roles, each with its own network: "features" for FID and recall; "evaluator" (another architecture and seed)
predicts whether a sample shows the class that it was conditioned on; "selector" chooses among candidates (rejection sampling).
If one network had two roles, the metrics would favour what it selected. A FID in these features compares two models trained on
the same data; it is not the published FID of Inception features, and the protocol's name and fingerprint say so.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.cluster.passes import Progress, Reading, on_main
from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read.stream import SplitLoader, Stream
from bigtrain.data.splits import image_shape
from bigtrain.errors import UserError
from bigtrain.features.cache import Cache, Entry, fingerprint, key_of_images
from bigtrain.features.network import Extracted, Features, full_float32, pictures, with_channels
from bigtrain.randomness import generator, torch_seed

Role = Literal["features", "evaluator", "selector"]

_RECORDED_ROLES: dict[Role, str] = {"features": "features", "evaluator": "judge", "selector": "selector"}
"""The name of each role in fingerprints and cache keys; these must not change, or old fingerprints would no longer match."""
TRUNK_SIDE = 16
"""Side of the feature map after the stem, whatever the images' size, which bounds the work per image."""
HELD_OUT_IMAGES = 10_000
"""The most images that a classifier's accuracy is measured on."""
FEW_CLASSES, MANY_CLASSES = 300, 1000
"""Between these a classifier is trained on more images in proportion to the number of classes."""
LEAST_ACCURACY = 0.5
"""A classifier that recognises fewer is warned of."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """How a classifier is trained: AdamW on a one-cycle schedule (Smith & Topin 2018), images shifted at random."""

    seed: int
    epochs: int = 12
    least_images: int = 6_400
    """The fewest images to train on; a small set is repeated to reach them."""
    most_images: int = 120_000
    """The most images to train on, with FEW_CLASSES or fewer: a minute or two on two cores, seconds on a GPU. Never bounded by
    the clock, since the network must not depend on the machine."""
    batch: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    shift: float = 0.125
    """Largest shift in each direction, as a share of the shorter side. No flips: a mirrored 3 is not a 3."""

    def steps(self, samples: int, classes: int) -> int:
        most = self.most_images * min(max(classes, FEW_CLASSES), MANY_CLASSES) // FEW_CLASSES
        return max(1, min(max(self.epochs * samples, self.least_images), most) // self.batch)


TRAININGS: dict[Role, Training] = {
    "features": Training(seed=0),
    "evaluator": Training(seed=1),
    "selector": Training(seed=2),
}


def _stem(size: tuple[int, int], inputs: int, outputs: int, least_stride: int) -> nn.Conv2d:
    """Reduces the image to at most about TRUNK_SIDE pixels a side, with overlapping kernels."""
    stride = max(least_stride, round(max(size) / TRUNK_SIDE))
    return nn.Conv2d(inputs, outputs, kernel_size=2 * stride + 1, stride=stride, padding=stride, bias=False)


def build_network(role: Role, classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A network from images [n, C, H, W] in [-1, 1], of `shape` (C, H, W), to logits [n, classes], with timm's
    forward_features/forward_head.

    features and selector: a residual network with 4 blocks (He et al. 2016), 128 features. evaluator: a DenseNet-BC with 12
    layers (Huang et al. 2017), 108 features. Both have a stem for small images instead of the usual one for 224 pixels.
    """
    # timm takes seconds to import, and recipes import this package for its options.
    from timm.models.densenet import DenseNet
    from timm.models.resnet import BasicBlock, ResNet

    network: Any
    channels, size = shape[0], shape[1:]
    if role != "evaluator":
        block: Any = BasicBlock
        widths = (24, 48, 96, 128)
        network = ResNet(block, (1, 1, 1, 1), classes, channels=widths, stem_type="deep", stem_width=widths[0] // 2)
        network.conv1 = _stem(size, channels, network.conv1[-1].out_channels, least_stride=1)
        network.maxpool = nn.Identity()
    else:
        network = DenseNet(growth_rate=12, block_config=(2, 4, 6), num_classes=classes)
        network.features.conv0 = _stem(size, channels, network.features.conv0.out_channels, least_stride=2)
        network.features.pool0 = nn.Identity()
    assert isinstance(network, nn.Module)
    return network


class Classifier(Features):
    """A trained classifier: its penultimate layer gives features, its last one predicts. Always float32."""

    def __init__(self, network: nn.Module, role: Role, facts: dict[str, Any], device: torch.device) -> None:
        self._network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device
        self.name = f"classifier ({role})"
        classes = network.get_classifier().out_features  # type: ignore[operator]
        self.facts = {"kind": "trained on the data's labels", "resize": "none", "classes": classes, **facts}
        self.dimensions = int(network.num_features)  # type: ignore[arg-type]
        self.channels = next(network.parameters()).shape[1]  # the stem's weight comes first
        self.fingerprint = fingerprint(
            network.state_dict(), [_RECORDED_ROLES[role], type(network).__name__, self.dimensions]
        )

    def predict(self, images: Tensor) -> Tensor:
        """uint8 [n, 1 or 3, H, W] on the device to the most probable class of each, int64 [n]."""
        with full_float32(self.device):
            return self._network(_normalised(with_channels(images, self.channels))).argmax(1)

    def score(self, images: Tensor, labels: Tensor) -> Tensor:
        """The log-probability of each image's label, float32 [n]; images uint8 [n, 1 or 3, H, W], labels int64 [n]."""
        with full_float32(self.device):
            logits = self._network(_normalised(with_channels(images, self.channels)))
            return logits.log_softmax(1).gather(1, labels[:, None])[:, 0]

    def _extract(self, images: Tensor) -> Extracted:
        network: Any = self._network
        features = network.forward_head(network.forward_features(_normalised(images)), pre_logits=True)
        return Extracted(features, network.get_classifier()(features))


def _normalised(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], channels_last."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)


_KEYS: dict[Role, str] = {"features": "features", "evaluator": "metrics", "selector": "candidates"}
"""The key of section `evaluation` that makes each role necessary."""


def check_classes(index: Index, role: Role) -> None:
    """Raises UserError if the split has fewer than two classes, which no classifier can be trained on."""
    if len(index.classes) < 2:
        raise UserError(
            f"evaluation.{_KEYS[role]}: {index.path} has one class, so no classifier can be trained on its labels; set "
            "evaluation.features to another network, and leave out class_accuracy"
        )


def find_classifier(
    index: Index, validation: Index | None, role: Role, reading: Reading, device: torch.device
) -> Classifier:
    """The classifier of a role for a training split: from the cache, or trained now.

    Rank 0 trains, on its device; every rank gets the same weights. The accuracy on the `validation` split, or where there is
    none on the training split itself (on at most HELD_OUT_IMAGES), is among the classifier's facts. Raises UserError as
    `check_classes` does, and Stopped.
    """
    check_classes(index, role)
    weights, accuracy = on_main(
        f"makes the {role} network", lambda: _weights_and_accuracy(index, validation, role, reading, device)
    )
    return _restore(index, role, safetensors.torch.load(weights), accuracy, device)


def _weights_and_accuracy(
    index: Index, validation: Index | None, role: Role, reading: Reading, device: torch.device
) -> tuple[bytes, dict[str, float | None]]:
    cache, key = Cache(index), _key(index, role)
    entry = cache.read("classifier", key)
    if entry is None:
        network = train_classifier(index, role, reading, device)
        entry = Entry({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, {})
        cache.write("classifier", key, entry, shared=True)
    classifier = _restore(index, role, entry.tensors, {}, device)
    value = _accuracy(cache, index if validation is None else validation, classifier, reading)
    if value < LEAST_ACCURACY:
        log.warning(
            "the %s network recognises %.0f %% of %s images: a number that it gives says little; set evaluation.features to a "
            "published network, or leave out what classifiers measure",
            role,
            100 * value,
            "its training" if validation is None else "held-out",
        )
    facts: dict[str, float | None] = {"held_out_accuracy": None if validation is None else value}
    if validation is None:
        facts["training_accuracy"] = value
    return safetensors.torch.save(entry.tensors), facts


def _key(index: Index, role: Role) -> dict[str, Any]:
    import timm

    return {
        "role": _RECORDED_ROLES[role],
        **key_of_images(index),
        "training": asdict(TRAININGS[role]),
        "trunk_side": TRUNK_SIDE,
        "timm": timm.__version__,
    }


def _restore(
    index: Index, role: Role, weights: dict[str, Tensor], accuracy: Mapping[str, float | None], device: torch.device
) -> Classifier:
    with _private_randomness(0):
        network = build_network(role, len(index.classes), image_shape(index))
    network.load_state_dict(weights)
    facts = {"architecture": type(network).__name__, "trained_on": index.fingerprint, **accuracy}
    return Classifier(network, role, facts, device)


def _accuracy(cache: Cache, index: Index, classifier: Classifier, reading: Reading) -> float:
    """The accuracy on images of a split, from the cache or measured now."""
    key = {"classifier": classifier.fingerprint, "index": index.fingerprint, "images": HELD_OUT_IMAGES}
    entry = cache.read("held-out", key)
    if entry is None:
        entry = Entry({}, {"accuracy": measure_accuracy(classifier, index, reading)})
        cache.write("held-out", key, entry, shared=True)
    return float(entry.facts["accuracy"])


def measure_accuracy(classifier: Classifier, index: Index, reading: Reading) -> float:
    """The accuracy on (at most HELD_OUT_IMAGES) images of a split, computed by this process alone."""
    right, total = torch.zeros((), dtype=torch.int64, device=classifier.device), 0
    image, label = names = index.labelled_image
    sweep = SplitLoader(
        index, rank=0, world=1, batch=reading.batch, workers=reading.workers, limit=HELD_OUT_IMAGES, fields=names
    )
    for _, batch in sweep:
        reading.check_stop()
        images = pictures(batch[image], classifier.device)
        right += (classifier.predict(images) == batch[label].to(classifier.device)).sum()
        total += len(images)
    return int(right) / total


def train_classifier(index: Index, role: Role, reading: Reading, device: torch.device) -> nn.Module:
    """Trains the network of a role on a split, in this process alone; every draw is keyed by the role's seed.

    Leaves torch's generators, default dtype and precision settings as they were.
    """
    training = TRAININGS[role]
    image, label = index.labelled_image
    with _batches(index, training, reading) as stream:
        batches = ((pictures(batch[image], device), batch[label].to(device)) for batch in stream)
        return _trained(role, batches, index.samples, len(index.classes), image_shape(index), reading, device)


def train_on_images(
    images: Tensor, labels: Tensor, classes: int, role: Role, reading: Reading, device: torch.device
) -> nn.Module:
    """`train_classifier` for images in memory: uint8 [n, C, H, W], labels int64 [n], on the CPU."""
    _, channels, height, width = images.shape
    batches = _shuffled(images, labels, TRAININGS[role], device)
    return _trained(role, batches, len(images), classes, (channels, height, width), reading, device)


def _shuffled(
    images: Tensor, labels: Tensor, training: Training, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches in an order that is keyed by the epoch; a batch may span the end of an epoch."""
    remaining = torch.empty(0, dtype=torch.int64)
    for epoch in itertools.count():
        order = generator(training.seed, "evaluation/images", step=epoch).permutation(len(images))
        remaining = torch.cat([remaining, torch.from_numpy(order)])
        while len(remaining) >= training.batch:
            chosen, remaining = remaining[: training.batch], remaining[training.batch :]
            yield images[chosen].to(device), labels[chosen].to(device)


def _trained(
    role: Role,
    batches: Iterator[tuple[Tensor, Tensor]],
    samples: int,
    classes: int,
    shape: tuple[int, int, int],
    reading: Reading,
    device: torch.device,
) -> nn.Module:
    """A network of a role, trained on batches of images uint8 [n, C, H, W] and labels int64 [n] on the device."""
    training = TRAININGS[role]
    steps = training.steps(samples, classes)
    with _private_randomness(training.seed):
        network = build_network(role, classes, shape)
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, total_steps=steps + 1, pct_start=0.2)
    with Progress(steps * training.batch, f"training the {role} network") as bar:
        for step in range(steps):
            reading.check_stop()
            pixels, labels = next(batches)
            images = _normalised(pixels)
            with full_float32(device), torch.enable_grad():
                logits = network(shifted(images, _shifts(training, step, images)))
                loss = F.cross_entropy(logits, labels, label_smoothing=training.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            schedule.step()
            bar.add(training.batch)
    return network.eval()


@contextmanager
def _batches(index: Index, training: Training, reading: Reading) -> Iterator[Stream]:
    options = DataOptions(train=str(index.path), workers=reading.workers)
    names = index.labelled_image
    stream = Stream(index, options, training.seed, rank=0, world=1, microbatch=training.batch, fields=names)
    try:
        yield stream
    finally:
        stream.close()


def _shifts(training: Training, step: int, images: Tensor) -> Tensor:
    """Keyed shifts in pixels, int64 [n, 2] on the CPU, uniform in -most .. most."""
    most = int(training.shift * min(images.shape[2:]))
    draws = generator(training.seed, "evaluation/shift", step=step)
    return torch.from_numpy(draws.integers(-most, most + 1, (len(images), 2)))


def shifted(images: Tensor, shifts: Tensor) -> Tensor:
    """Images [n, C, H, W] moved by (down, right) pixels, int64 [n, 2]; border pixels are repeated."""
    _, _, height, width = images.shape
    rows = (torch.arange(height) - shifts[:, :1]).clamp(0, height - 1).to(images.device)
    columns = (torch.arange(width) - shifts[:, 1:]).clamp(0, width - 1).to(images.device)
    numbers = torch.arange(len(images), device=images.device)
    moved = images.permute(0, 2, 3, 1)[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


@contextmanager
def _private_randomness(seed: int) -> Iterator[None]:
    """Initialises in float32 from a keyed generator; leaves the run's generator and default dtype as they were."""
    dtype = torch.get_default_dtype()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(torch_seed(seed, "evaluation/classifier"))
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        torch.set_default_dtype(dtype)
