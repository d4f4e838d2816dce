"""The Frechet distance of a split's reconstructions and the split itself: rFID in Inception's features.

If evaluation.split_samples is set, a fixed random subset of so many images is reconstructed; the reference is the whole split.
"""

from typing import Any

from bigtrain.evaluation.metrics.fd import FD


class RFD(FD, name="rfd"):
    """Compares reconstructions as if they were samples."""

    measured_on = "reconstructions"
    lower_is_better = ("rfd",)

    def facts(self) -> dict[str, Any]:
        samples, real = self.comparison.samples.images, self.comparison.real.images
        assert real is not None
        return {"features": self.comparison.features.protocol([samples.channels]), "reference_samples": real.count}
