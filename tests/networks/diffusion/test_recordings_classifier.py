"""The classifier of noisy images is ADM's, by values of the authors' code (tests/recordings/guided_diffusion_classifier.py).

Under their weights it has their logits and gradients, to 1e-9 of the norm of each; at the size of the published 64x64
classifier each of their tensors is one of ours, or several."""

import pytest
import torch
from torch import Tensor

from bigtrain.exchange.convert.sources.unets import from_openai
from bigtrain.networks.diffusion.noisy_encoder import NoisyEncoder, Pool
from bigtrain.networks.diffusion.unet import UNetOptions
from tests.networks.diffusion.test_recordings_unet import of_theirs
from tests.recordings.formula import weight
from tests.recordings.summary import assert_excerpt, assert_summaries, objective, read, summary
from tests.recordings.unet_steps import CLASSES, TIMES, images

FORM = {"scale_shift": True, "resnet_resampling": True}
SMALL = UNetOptions(
    channels=32, multipliers=(1, 2), blocks_per_level=1, attention_resolutions=(8, 4), head_channels=16, **FORM
)
PUBLISHED = UNetOptions(
    channels=128,
    multipliers=(1, 2, 3, 4),
    blocks_per_level=4,
    attention_resolutions=(32, 16, 8),
    head_channels=64,
    **FORM,
)


def our_tensors(theirs: dict[str, Tensor], options: UNetOptions) -> dict[str, Tensor]:
    """Ours by our names, of some or all of theirs."""
    ours: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        layer, _, kind = name.rpartition(".")
        match layer:
            case "out.0":
                ours[f"norm.{kind}"] = tensor
            case "out.2":
                assert kind == "positional_embedding"
                ours["head.positions"] = tensor.t()
            case "out.2.qkv_proj":
                # Their rows are all heads' queries, then keys, then values, whatever the order in the other attentions.
                query, key, value = (tensor.flatten(1) if kind == "weight" else tensor).chunk(3)
                ours |= {f"head.query.{kind}": query, f"head.key_value.{kind}": torch.cat([key, value])}
            case "out.2.c_proj" | "out.3":
                ours[f"head.out.{kind}"] = tensor.flatten(1) if kind == "weight" else tensor
            case _:
                body = from_openai({name: tensor}, options)
                ours |= {each.removeprefix("unet."): part for each, part in body.items()}
    return ours


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_logits_and_gradients_are_the_authors(pool: Pool) -> None:
    recorded = read("guided_diffusion_classifier")["small"][pool]
    shapes = recorded["shapes"]
    network = NoisyEncoder(SMALL, (8, 8), 3, CLASSES, pool).double()
    # Strictly: it raises for a tensor of ours that is left out or one that is not there.
    network.load_state_dict(our_tensors({name: weight(name, shape) for name, shape in shapes.items()}, SMALL))
    x = images(8)
    output = network(x, torch.tensor(TIMES))
    objective(output).backward()
    assert_excerpt(output, recorded["output"], "output")
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    found = of_theirs(gradients, shapes, lambda tensors: our_tensors(tensors, SMALL))
    assert_summaries({"input": summary("input", x.grad), **found}, recorded["gradients"])


def test_the_published_classifier_has_the_authors_tensors() -> None:
    published = read("guided_diffusion_classifier")["published"]
    with torch.device("meta"):
        network = NoisyEncoder(PUBLISHED, (64, 64), 3, 1000, "attention")
        theirs = {name: torch.empty(shape) for name, shape in published["shapes"].items()}
    assert sum(parameter.numel() for parameter in network.parameters()) == published["parameters"]
    found = {name: part.shape for name, part in our_tensors(theirs, PUBLISHED).items()}
    assert found == {name: tensor.shape for name, tensor in network.state_dict().items()}
