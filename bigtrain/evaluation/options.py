"""What a recipe may say of evaluation."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from bigtrain.evaluation.metrics.definitions import DEFAULT_METRICS, SampleMetricName
from bigtrain.options import Options

HeldOutName = Literal["bits_per_dim", "reconstruction", "rfid"]
MetricName = SampleMetricName | HeldOutName
HELD_OUT: Mapping[str, Literal["likelihood", "reconstruct"]] = {
    "bits_per_dim": "likelihood",
    "reconstruction": "reconstruct",
    "rfid": "reconstruct",
}
"""Metrics of real data, by what a family must be able to do for them; all others need its samples."""
DEFAULT_HELD_OUT: tuple[HeldOutName, ...] = ("bits_per_dim", "reconstruction")
"""Of a model that draws no images."""


class EvaluationOptions(Options):
    """What is measured and against what. Larger `samples` lower the bias of a FID: compare only at equal `samples`."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"stored": "max_features", "any_size": "allow_mixed_sizes"}
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"metrics": {"accuracy": "class_accuracy"}}

    metrics: tuple[MetricName, ...] | None = Field(default=None, min_length=1)
    """What to measure; null: fid, recall, real_fid and, where classes can be asked for, class_accuracy of a family that draws
    images, else what it can; of images from anywhere fid, kid, precision, recall, density and coverage.

    fid: of the samples against the whole reference (Heusel et al. 2017). kid: the kernel distance (Binkowski et al. 2018).
    inception_score: with its deviation over splits (Salimans et al. 2016). precision, recall: share of the samples among the
    reference, of the reference among the samples (Kynkäänniemi et al. 2019). density, coverage: the same by real
    neighbourhoods alone (Naeem et al. 2020). intra_fid: mean FID within each class (Miyato & Koyama 2018); it keeps all feature
    vectors in files, the reference's for the next time too (8 KiB an image for Inception). class_accuracy: share of
    the samples in which an independent classifier sees the class that was asked for. classification_accuracy_score: share of
    held-out images that a classifier trained on the samples recognises (Ravuri & Vinyals 2019). two_sample_test: how well
    neighbours tell samples from real images (Lopez-Paz & Oquab 2017). nearest_neighbours: the reference's images nearest to
    some samples, and a picture of them. real_fid: of real images against other real images, as many as samples: what a
    perfect model would score at this number (the scale of a fid in features of one's own). bits_per_dim: negative
    log-likelihood of `split` per dimension, or a bound of it. reconstruction: error of the images of `split` after encoding
    and decoding. rfid: FID of those images, so changed, against `split` itself."""
    samples: int = Field(default=10_000, ge=2)
    """Images to generate."""
    features: str = "classifier"
    """`classifier`: a small network trained on the spot on the data's labels. `clean`, `legacy_tensorflow`,
    `legacy_pytorch`: FID's Inception as clean-fid's modes of these names. `timm:MODEL`: a model of timm, such as
    timm:vit_large_patch14_dinov2.lvd142m for the FD with DINOv2. Or the path of a TorchScript network with the calling
    convention of the public FID Inception, net(uint8 [n, 3, H, W], return_features=True) -> float [n, d]."""
    weights: str | None = None
    """Path of the weights of `clean`, `legacy_*` or `timm:MODEL`; null: from the cache, or fetched."""
    reference: str = "train"
    """What samples are compared with: `train` or `validation`, the data's splits; or the path of an index of shards, a folder,
    a tar or zip of images, an npz of samples (guided-diffusion's), or an npz of moments (pytorch-fid's, clean-fid's,
    guided-diffusion's, or made by --save-moments)."""
    split: Literal["train", "validation"] = "validation"
    """Split that bits_per_dim and reconstruction are measured on."""
    split_samples: int | None = Field(default=None, gt=0)
    """Measure them on so many samples of the split, in a fair order; null: on all of it."""
    likelihood_evaluations: int | None = Field(default=None, ge=2)
    """Evaluations of the network for each sample's bits_per_dim, where that is a bound that fewer can estimate (diffusion:
    right in the mean, noisy for each sample); null: all that it takes."""
    allow_mixed_sizes: bool = False
    """Let the feature network resize images of different sizes, within a set or between samples and reference; false: that
    is an error, since a FID across resolutions is rarely meant."""
    max_features: int = Field(default=10_000, ge=2)
    """Most feature vectors kept of each side, a fair sample, for metrics that look at single ones (kid, precision, recall,
    density, coverage, two_sample_test); and most samples that a classification_accuracy_score is trained on."""
    batch_size: int = Field(default=100, gt=0)
    """Images at a time on each rank; does not change the result."""
    workers: int | None = Field(default=None, ge=0)
    """Processes per rank that read images; null: data.workers, and 2 where there is no recipe."""
    seed: int = Field(default=0, ge=0)
    """Keys the samples' noise and labels, whatever run.seed is."""
    candidates: int = Field(default=1, ge=1)
    """Rejection sampling: of so many candidates for each sample, the one whose class `classifier` is surest of; 1: none."""
    classifier: str = "classifier"
    """What selects among candidates: `classifier`, a network trained on the spot and used for nothing else; or the path of a
    TorchScript network from uint8 [n, 3, H, W] to logits [n, classes]."""
    recall_neighbours: int = Field(default=3, ge=1)
    """The k of the k-nearest-neighbour balls of precision and recall."""
    coverage_neighbours: int = Field(default=5, ge=1)
    """The k of those of density and coverage."""
    kid_subsets: int = Field(default=100, ge=1)
    """Random subsets that kid is a mean over."""
    kid_subset_size: int = Field(default=1000, ge=2)
    """Vectors of each side in one of them, at most."""
    score_splits: int = Field(default=10, ge=1)
    """Parts of the samples over which inception_score is averaged."""
    pictured_samples: int = Field(default=10, ge=1)
    """Samples for which nearest_neighbours are sought."""
    pictured_neighbours: int = Field(default=7, ge=1)
    """Neighbours of each."""

    def chosen(self, capabilities: frozenset[str]) -> tuple[MetricName, ...]:
        """The metrics to measure of a family with these capabilities."""
        if self.metrics is not None:
            return self.metrics
        if "sample" in capabilities:
            return tuple(name for name in DEFAULT_METRICS if name != "class_accuracy" or "by_class" in capabilities)
        return tuple(name for name in DEFAULT_HELD_OUT if HELD_OUT[name] in capabilities)
