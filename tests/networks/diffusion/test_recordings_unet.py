"""The UNet is the authors', by values of their code: guided-diffusion (ADM), improved-diffusion (iDDPM) and pytorch_diffusion,
the port of Ho et al.'s (tests/recordings/*_unet.py). Under their weights it has their outputs and gradients, to 1e-9 of the
norm of each; at the published sizes each of their tensors is one of ours, or three."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.exchange.convert.sources.unets import from_openai, from_pytorch_diffusion
from bigtrain.networks.diffusion.unet import UNet, UNetOptions
from bigtrain.recipe import load_recipe
from bigtrain.sizes import size_of
from tests.recordings.formula import pattern, weight
from tests.recordings.summary import assert_excerpt, assert_summaries, objective, read, summary
from tests.recordings.unet_steps import CLASSES, LABELS, TIMES, images

RECIPES = Path(__file__).parents[3] / "recipes"
SMALL = {"channels": 32, "multipliers": (1, 2), "blocks_per_level": 1, "attention_resolutions": (8, 4)}
ADM = SMALL | {"head_channels": 16, "scale_shift": True, "resnet_resampling": True}
IDDPM = SMALL | {"multipliers": (1, 2, 2), "attention_resolutions": (4, 2), "head_channels": 16, "scale_shift": True}
ONE_HEAD = SMALL | {"attention_resolutions": (8,)}
HO = SMALL | {"multipliers": (1, 2, 2), "attention_resolutions": (4,), "variant": "ho"}
new_order = partial(from_openai, new_attention_order=True)

Translate = Callable[[dict[str, Tensor], UNetOptions], dict[str, Tensor]]
CASES = [
    ("guided_diffusion_unet", "new_attention_order", ADM, 6, CLASSES, new_order),
    ("guided_diffusion_unet", "legacy_attention_order", ADM, 6, CLASSES, from_openai),
    ("improved_diffusion_unet", "cifar", IDDPM, 6, None, from_openai),
    ("improved_diffusion_unet", "by_class", ONE_HEAD, 6, CLASSES, from_openai),
    ("pytorch_diffusion_unet", "cifar", HO, 3, None, from_pytorch_diffusion),
]
PUBLISHED = [
    ("guided_diffusion_unet", "ddpm_imagenet64", 1000, 295_904_454, new_order),
    ("improved_diffusion_unet", "iddpm_cifar10", None, 52_546_438, from_openai),
    ("pytorch_diffusion_unet", "ddpm_cifar10", None, 35_746_307, from_pytorch_diffusion),
]


def of_theirs(
    gradients: dict[str, Tensor],
    shapes: dict[str, list[int]],
    translate: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> dict[str, list[float]]:
    """The summaries of their gradients, of ours: a tensor of theirs that is three of ours holds all of their elements."""
    summaries = {}
    for name, shape in shapes.items():
        parts = translate({name: pattern(name, tuple(shape))})
        dot_product = sum(float((part * gradients[ours]).sum()) for ours, part in parts.items())
        norm = torch.linalg.vector_norm(torch.stack([gradients[ours].norm() for ours in parts]))
        summaries[name] = [dot_product, float(norm)]
    return summaries


@pytest.mark.parametrize(
    ("script", "case", "options", "outputs", "classes", "translate"), CASES, ids=[" ".join(case[:2]) for case in CASES]
)
def test_outputs_and_gradients_are_the_authors(
    script: str, case: str, options: dict[str, Any], outputs: int, classes: int | None, translate: Translate
) -> None:
    recorded, unet_options = read(script)["small"][case], UNetOptions(**options)
    shapes = recorded["shapes"]
    network = UNet(unet_options, (8, 8), 3, outputs, classes).double()
    # Strictly: it raises for a tensor of ours that is left out or one that is not there.
    network.load_state_dict(translate({name: weight(name, shape) for name, shape in shapes.items()}, unet_options))
    x = images(8)
    output = network(x, torch.tensor(TIMES), torch.tensor(LABELS) if classes else None)
    objective(output).backward()
    assert_excerpt(output, recorded["output"], "output")
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    found = of_theirs(gradients, shapes, lambda tensors: translate(tensors, unet_options))
    assert_summaries({"input": summary("input", x.grad), **found}, recorded["gradients"])


@pytest.mark.parametrize(
    ("script", "recipe", "classes", "parameters", "translate"), PUBLISHED, ids=[case[1] for case in PUBLISHED]
)
def test_the_recipes_networks_have_the_authors_tensors_and_number_of_parameters(
    script: str, recipe: str, classes: int | None, parameters: int, translate: Translate
) -> None:
    published, options = read(script)["published"], load_recipe(RECIPES / f"{recipe}.yaml")
    unet_options = options.family.unet
    with torch.device("meta"):
        learned = options.family.variance == "learned"
        network = UNet(unet_options, size_of(options.data.image_size), 3, 6 if learned else 3, classes)
        theirs = {name: torch.empty(shape) for name, shape in published["shapes"].items()}
    assert published["parameters"] == parameters
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    translated = [translate({name: tensor}, unet_options) for name, tensor in theirs.items()]
    names = [name for parts in translated for name in parts]
    assert len(names) == len(set(names))
    found = {name: part.shape for parts in translated for name, part in parts.items()}
    assert found == {name: tensor.shape for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("translate", [from_openai, from_pytorch_diffusion])
@pytest.mark.parametrize(
    "name",
    ["middle_block.1.conv.weight", "mid.attn_1.conv1.weight", "input_blocks.1.0.q.weight", "up.0.down.conv.bias"],
)
def test_a_name_that_the_authors_do_not_have_is_an_error(translate: Translate, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        translate({name: torch.zeros(4, 4, 1)}, UNetOptions(**SMALL))
