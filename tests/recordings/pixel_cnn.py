"""PixelCNN++'s likelihood, recorded: python tests/recordings/pixel_cnn.py PATH_OF_THE_AUTHORS_CHECKOUT

github.com/openai/pixel-cnn at commit bbc15688dd37934a12c2759cf2b34975e15901d9. TensorFlow 1 cannot be installed beside
today's torch, so their `discretized_mix_logistic_loss` runs as it is, but computes with torch in float64: under the names
of the few TensorFlow functions that it calls stand torch's of the same meaning.

Two sets of pixels, R, G, B each. `likely`: every component gives every channel a probability above 1e-5, with scales
down to below the floor and values up to both ends of the range; the published code computes those exactly. `unlikely`:
one component, 25 scales or more away, where the published code takes the density at the middle of the bin instead.
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.recordings.formula import pattern
from tests.recordings.summary import excerpt, objective, open_checkout, write

REPOSITORY = "github.com/openai/pixel-cnn"
COMMIT = "bbc15688dd37934a12c2759cf2b34975e15901d9"

Kind = Literal["likely", "unlikely"]
PIXELS = {"likely": 40, "unlikely": 12}
MIXTURES = {"likely": 5, "unlikely": 1}
SMALLEST_LOG_SCALE = -7.0


def values(kind: Kind) -> Tensor:
    """int64 [n, 3] in 0..255; the likely ones begin with the ends of the range."""
    numbers = ((pattern(f"{kind} values", (PIXELS[kind], 3), 0.5) + 0.5) * 254).long() + 1
    if kind == "likely":
        numbers[:4] = torch.tensor([[0, 0, 0], [255, 255, 255], [0, 255, 128], [255, 1, 254]])
    return numbers


def as_numbers(values: Tensor) -> Tensor:
    """As their training loop feeds pixels: 0..255 to [-1, 1]."""
    return (values.double() - 127.5) / 127.5


def parameters(kind: Kind) -> dict[str, Tensor]:
    """What the last layer puts out: `weights` [n, mixtures]; `means`, `log_scales`, `coefficients` [n, 3, mixtures].

    The means are such that each channel lies so many scales from each component, given the channels before it.
    """
    shape = PIXELS[kind], 3, MIXTURES[kind]
    x = as_numbers(values(kind))[..., None]
    coefficients = pattern(f"{kind} coefficients", shape)
    slopes = coefficients.tanh()
    earlier = torch.stack(
        [torch.zeros_like(slopes[:, 0]), slopes[:, 0] * x[:, 0], slopes[:, 1] * x[:, 0] + slopes[:, 2] * x[:, 1]], 1
    )
    away = pattern(f"{kind} distances", shape, 3)
    if kind == "likely":
        log_scales = pattern("likely log_scales", shape, 4) - 3.5
    else:
        log_scales, away = pattern("unlikely log_scales", shape, 3) - 4, away + 28 * away.sign()
    means = x - earlier + away * log_scales.clamp_min(SMALLEST_LOG_SCALE).exp()
    weights = pattern(f"{kind} weights", (PIXELS[kind], MIXTURES[kind]))
    return {"weights": weights, "means": means, "log_scales": log_scales, "coefficients": coefficients}


def published_layout(parameters: dict[str, Tensor]) -> Tensor:
    """[n, 1, 1, 10 mixtures]: the weights, then means, log scales and coefficients of R, of G and of B."""
    by_channel = torch.cat([parameters[name] for name in ("means", "log_scales", "coefficients")], dim=2)
    return torch.cat([parameters["weights"], by_channel.flatten(1)], dim=1)[:, None, None]


def tensorflow() -> ModuleType:
    """What the authors' nn.py needs of TensorFlow 1 to be imported and to compute a likelihood, by torch."""
    module = ModuleType("tensorflow")
    vars(module).update(
        concat=torch.cat,
        exp=torch.exp,
        log=torch.log,
        maximum=lambda x, least: torch.maximum(x, torch.tensor(least, dtype=x.dtype)),
        reduce_max=lambda x, axis, keepdims=False: x.amax(axis, keepdim=keepdims),
        reduce_sum=lambda x, axis, keepdims=False: x.sum(axis, keepdim=keepdims),
        reshape=torch.reshape,
        where=torch.where,
        zeros=lambda shape: torch.zeros(shape, dtype=torch.float64),
        nn=SimpleNamespace(
            sigmoid=torch.sigmoid,
            # torch's softplus is x itself above 20, which is 2e-9 off there.
            softplus=lambda x: torch.logaddexp(x, torch.zeros_like(x)),
            tanh=torch.tanh,
        ),
    )
    return module


def stand_in_for_tensorflow() -> None:
    sys.modules["tensorflow"] = tensorflow()
    for name in ("contrib", "contrib.framework", "contrib.framework.python"):
        sys.modules[f"tensorflow.{name}"] = ModuleType(name)
    operations: Any = ModuleType("ops")
    # It lets callers set defaults of the layers; the likelihood is no layer.
    operations.add_arg_scope = lambda function: function
    sys.modules["tensorflow.contrib.framework.python.ops"] = operations
    # TensorFlow's name for a tensor's size.
    Tensor.get_shape = Tensor.size  # type: ignore[attr-defined]


def likelihood(kind: Kind, parameters: dict[str, Tensor]) -> Tensor:
    """Nats of each pixel, [n]."""
    from pixel_cnn_pp.nn import discretized_mix_logistic_loss

    x = as_numbers(values(kind))[:, None, None]
    # Without sum_all it adds up each image: here of one pixel.
    return discretized_mix_logistic_loss(x, published_layout(parameters), sum_all=False)


def record() -> dict[str, Any]:
    leaves = {name: tensor.requires_grad_() for name, tensor in parameters("likely").items()}
    nats = likelihood("likely", leaves)
    objective(nats).backward()
    return {"nats": nats.tolist(), "gradients": {name: excerpt(leaf.grad) for name, leaf in leaves.items()}}


def main() -> None:
    open_checkout(COMMIT)
    stand_in_for_tensorflow()
    torch.set_num_threads(1)
    write(
        __file__,
        {
            "repository": REPOSITORY,
            "commit": COMMIT,
            "likely": record(),
            "unlikely": {"nats": likelihood("unlikely", parameters("unlikely")).tolist()},
        },
    )


if __name__ == "__main__":
    main()
