"""What every source of checkpoints defines, and what is found out about a checkpoint."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Weights of others. `parts`: the authors' tensors by component of our family; `files`: what they were read from, by
    component; `weights`: ema, raw, or `published` where nothing says which; `config`: JSON values that lay beside them, by file
    name; `licence`: what their model card says."""

    path: Path
    parts: Mapping[str, Tensors]
    files: Mapping[str, Path] = field(default_factory=dict)
    weights: str = "published"
    step: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint says of the recipe. `keys`: values by dotted key, such as family.kind; `asked`: what it does not say
    and a recipe must, by key, with a few words of advice; `channels`, `classes`: of the images (classes None: it is given
    none); `size`: their side in pixels, if it is known; `fields`: what the data hold, if not an image and a label."""

    keys: Mapping[str, Any]
    channels: int
    classes: int | None
    size: int | None = None
    asked: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Source(ABC):
    """One place that checkpoints come from."""

    name: ClassVar[str]
    """As `--from` names it."""
    repository: ClassVar[str]
    licence: ClassVar[str | None]
    """Of the authors' code, as their repository says; None where it says nothing."""
    files: ClassVar[Mapping[str, Sequence[str]]] = {"ema": (), "raw": ()}
    """Patterns of the files that a folder of checkpoints holds, by the weights in them."""
    base: ClassVar[Mapping[str, Any]]
    """The recipe that the tensors' keys are put into: what is usual for the source and no shape says."""
    main: ClassVar[str]
    """The component that samples, of which a checkpoint must hold the weights."""
    like: ClassVar[str]
    """What the names of most of its tensors begin with, a regular expression, by which half a checkpoint is told."""
    orders: ClassVar[Sequence[str]] = ()
    """What `--attention-order` may say of its checkpoints, where no shape says it."""
    kept: ClassVar[frozenset[str]] = frozenset()
    """The last words of the names of those of our tensors that the authors' networks lack; they stay as they begin."""

    def __init__(self, order: str | None = None) -> None:
        """`order`: one of `orders`, or None if it is not known."""
        self.order = order

    @abstractmethod
    def component_of(self, names: Collection[str]) -> str | None:
        """The component of our family that tensors of these names are; None if they are none of this source."""

    def beside(self, file: str) -> str | None:
        """The name of the file beside one, in which the other component lies; None if there is none."""
        return None

    @abstractmethod
    def architecture(self, checkpoint: Checkpoint, size: int | None) -> Architecture:
        """What the shapes say, for images whose shorter side is `size`, if that is known. Raises UserError for a variant that
        our networks do not have."""

    @abstractmethod
    def translated(self, component: str, theirs: Tensors, options: Any) -> dict[str, Tensor]:
        """Our state dict of theirs. `options`: the recipe's section of the family. Raises ValueError, naming the tensor, for
        one that their networks do not have."""

    def our_shapes(self, component: str, theirs: Tensors, options: Any) -> dict[str, tuple[int, ...]]:
        """The shapes of `translated`, without their values."""
        shapes = {name: tensor.to("meta") for name, tensor in theirs.items()}
        return {name: tuple(tensor.shape) for name, tensor in self.translated(component, shapes, options).items()}
