"""A player of a game whose move is one number."""

import torch
from torch import Tensor, nn


class Player(nn.Module):
    """Its move is a parameter."""

    def __init__(self, begin: float) -> None:
        super().__init__()
        self.move = nn.Parameter(torch.full((1,), begin))

    def forward(self) -> Tensor:
        """The move, []."""
        return self.move.sum()
