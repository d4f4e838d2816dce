"""The losses of a step, and their gradients, are those of the authors' model (tests/recordings/pix2pix.py)."""

import pytest
import torch
from torch import Tensor, nn

from bigtrain.exchange.convert.sources.pix2pix import our_discriminator_name, our_generator_name
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Microbatch
from bigtrain.families.translation.translation import Translation, TranslationOptions
from bigtrain.randomness import Draws
from tests.recordings.pix2pix import L1_WEIGHT, SAMPLES, STEP, depth_of, images, noise, size_of, value
from tests.recordings.summary import ABSOLUTE, RELATIVE, assert_summaries, gradients, read

RECORDING = read("pix2pix")
SIZE, DEPTH = size_of(STEP["generator"]), depth_of(STEP["generator"])
GENERATOR, DISCRIMINATOR = (RECORDING["networks"][STEP[component]] for component in ("generator", "discriminator"))
LAYERS = DISCRIMINATOR["arguments"]["n_layers_D"]


class GivenDraws(Draws):
    """The noise of the recording."""

    def uniform(self, stream: str, indices: object, shape: tuple[int, ...] = (), sampler_step: int = 0) -> Tensor:
        return noise(int(stream.removeprefix("dropout/")), (SAMPLES, *shape))


def family() -> Translation:
    generator = {
        "depth": DEPTH,
        "channels": GENERATOR["arguments"]["ngf"],
        "dropout_blocks": GENERATOR["dropout_blocks"],
    }
    options = TranslationOptions.model_validate(
        {
            "kind": "translation",
            "generator": generator,
            "discriminator": {"layers": LAYERS, "channels": DISCRIMINATOR["arguments"]["ndf"]},
            "generator_optimizer": {"lr": 2e-4},
            "discriminator_optimizer": {"lr": 2e-4},
        }
    )
    assert options.l1_weight == L1_WEIGHT
    facts = {"kind": "image", "size": [SIZE, SIZE], "channels": 3}
    return Translation(options, DataSpec((SIZE, SIZE), 3, ("0",), (1,), fields={"input": facts, "image": facts}))


def test_the_losses_of_a_step_and_their_gradients_are_the_authors() -> None:
    made, networks, losses = family(), dict[str, nn.Module](), {}
    names = {
        "generator": {key: our_generator_name(key, DEPTH) for key in GENERATOR["shapes"]},
        "discriminator": {key: our_discriminator_name(key, LAYERS) for key in DISCRIMINATOR["shapes"]},
    }
    for component, recorded in (("generator", GENERATOR), ("discriminator", DISCRIMINATOR)):
        networks[component] = made.components[component].build().double()
        tensors = {ours: value(key, recorded["shapes"][key]) for key, ours in names[component].items() if ours}
        networks[component].load_state_dict(tensors)
    fields = {"input": images("inputs", 3, SIZE), "image": images("targets", 3, SIZE)}
    batch = Microbatch(fields, range(SAMPLES), GivenDraws(0), torch.device("cpu"), SAMPLES)
    for phase in made.phases:
        for name, network in networks.items():
            network.requires_grad_(name == phase.name)
        losses[phase.name] = phase.loss(networks, batch)
        losses[phase.name].total.backward()
        trained = dict(networks[phase.name].named_parameters())
        theirs = {key: trained[ours] for key, ours in names[phase.name].items() if ours in trained}
        assert_summaries(gradients(theirs), RECORDING["step"][f"{phase.name}_gradients"])
    found = {name: loss.total.item() for name, loss in losses.items()}
    terms = losses["generator"].terms
    found |= {"game": terms["game"].item(), "l1": L1_WEIGHT * terms["l1"].item()}
    assert found == pytest.approx(RECORDING["step"]["losses"], rel=RELATIVE, abs=ABSOLUTE)
