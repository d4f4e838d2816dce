"""An early alarm: the spectra of spectrally normalised weights foretell the collapse of a GAN.

Brock et al. 2019, section 4: in the generator the largest singular values of some layers, above all of the first, grow all
through training and explode at collapse; in the discriminator they grow and jump at collapse. They are a symptom and not
the cause (holding them down did not prevent it), so this warns and does not stop.
"""

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from statistics import median

WATCHED = "/singular_value/"
"""What the names of watched values have in them."""
ROWS = 10
"""A jump is seen against the median of so many rows before it, and not before there are so many."""


class SpectrumAlarm:
    """Looks at every logged row; on the main rank."""

    def __init__(self, ratio: float | None, metrics: Path) -> None:
        """`ratio`: warn when a value is so many times the median of the last rows; None: never. `metrics`: what the run has
        logged so far, so that a resumed run says what it would have said."""
        self._ratio = ratio
        self._history: dict[str, deque[float]] = {}
        self._raised: set[str] = set()
        if ratio is not None and metrics.exists():
            for line in metrics.read_text(encoding="utf-8").splitlines():
                self.look(json.loads(line))

    def look(self, row: Mapping[str, float]) -> list[str]:
        """What this row gives reason to say: once when a value jumps, and again only after it has come down."""
        if self._ratio is None:
            return []
        said = []
        for name, value in row.items():
            if WATCHED in name:
                history = self._history.setdefault(name, deque(maxlen=ROWS))
                usual = median(history) if len(history) == ROWS else None
                jumped = usual is not None and value > self._ratio * usual
                if jumped and name not in self._raised:
                    said.append(
                        f"{name} is {value:.4g}, {value / (usual or 1):.1f} times what it was: such a jump goes before the "
                        "collapse of a GAN (Brock et al. 2019, section 4); keep the checkpoints from before it"
                    )
                (self._raised.add if jumped else self._raised.discard)(name)
                history.append(value)
        return said
