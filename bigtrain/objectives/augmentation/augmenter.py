"""What every augmentation is: options that change images, and perhaps a state that the discriminator holds."""

from abc import abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from bigtrain.networks.layers.double_backward import call_differentiable_twice
from bigtrain.objectives.inputs import Draw
from bigtrain.options import Options

Change = Callable[[Tensor], Tensor]
"""Images [n, C, H, W] to augmented ones; the same change at every call."""

_NAME = "augmentation"
"""Of the state in a discriminator."""


def unchanged(images: Tensor) -> Tensor:
    return images


class Augmenter(Options):
    """Changes images before a discriminator is given them."""

    @abstractmethod
    def augment(self, images: Tensor, draw: Draw, state: nn.Module | None) -> Tensor:
        """Images [n, C, H, W], augmented. `draw`: uniform numbers of each sample; `state`: what `state_of` returns."""

    def new_state(self) -> nn.Module | None:
        """A module of what must be remembered between steps; None: nothing."""
        return None

    def add_state(self, discriminator: nn.Module) -> None:
        """Lets the discriminator hold the state, so that its checkpoints have it."""
        if (state := self.new_state()) is not None:
            discriminator.add_module(_NAME, state)

    def state_of(self, discriminator: nn.Module) -> nn.Module | None:
        return getattr(discriminator, _NAME, None)

    def observe(self, state: nn.Module | None, logits: Tensor) -> dict[str, Tensor]:
        """Records what the discriminator says of real images in its own phase; returns scalars to log."""
        return {}

    def check_game(self, kind: str, sign_tells_real: bool) -> None:
        """Raises ValueError for an objective of a kind that does not go with it. `sign_tells_real`: the game's."""

    def check_data(self, kind: str | None, channels: int) -> None:
        """Raises ValueError for what is no image of one channel or three. `kind`: of the field; None: there is none."""
        if kind != "image" or channels not in (1, 3):
            what = (
                f"images of {channels} channels"
                if kind == "image"
                else f"a field of kind {kind}"
                if kind
                else "no images"
            )
            raise ValueError(
                f"family.augmentation: changes images of one channel or three, and the data have {what}; set it to null"
            )


class Augmented(nn.Module):
    """A discriminator that augments images first, for penalties on its gradient by images as they were before."""

    def __init__(self, discriminator: nn.Module, change: Change) -> None:
        super().__init__()
        self.discriminator, self.change = discriminator, change

    def forward(self, images: Tensor, *conditions: Tensor) -> Tensor:
        logits: Tensor = call_differentiable_twice(self.discriminator, self.change(images), *conditions)
        return logits
