"""Feature networks with seeded random weights, saved in the forms in which the published ones come."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from bigtrain.features.inception import build_inception
from bigtrain.features.scripts import named_on_command_line


class TinyInception(nn.Module):
    """The members of the public TorchScript Inception that are used, with 16 features and 7 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 7, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.output = nn.Linear(16, 7)

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        return self.layers(images.float()).flatten(1)


def save_tiny_inception(path: Path) -> TinyInception:
    """Saves it, and lets this process run it, as it does what its command line names."""
    torch.manual_seed(0)
    network = TinyInception()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(path)
    named_on_command_line(str(path), "evaluation.weights", instead="")
    return network


def save_random_inception(path: Path) -> None:
    """The whole architecture as a state dict: variances are kept from layer to layer, so that features spread."""
    generator = torch.Generator().manual_seed(0)
    state = build_inception().state_dict()
    for name, value in state.items():
        if name.endswith(("conv.weight", "fc.weight")):
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith(("bn.weight", "running_var")):
            value.uniform_(0.5, 1.5, generator=generator)
        else:
            value.zero_()
    torch.save(state, path)
