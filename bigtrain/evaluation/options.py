"""The options of evaluation: section `evaluation` of a recipe."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from bigtrain.evaluation.metrics.definitions import DEFAULT_METRICS, SampleMetricName
from bigtrain.families.abilities import Ability, Likelihood, Reconstructs, Samples
from bigtrain.families.family import Family
from bigtrain.options import Options

HeldOutName = Literal["bits_per_dim", "reconstruction", "rfid"]
MetricName = SampleMetricName | HeldOutName
HELD_OUT: Mapping[str, type[Ability]] = {
    "bits_per_dim": Likelihood,
    "reconstruction": Reconstructs,
    "rfid": Reconstructs,
}
"""Metrics that are measured on real data, and the ability that each needs of a family; all other metrics need samples."""
DEFAULT_HELD_OUT: tuple[HeldOutName, ...] = ("bits_per_dim", "reconstruction")
"""What is measured by default of a model that draws no images."""


class EvaluationOptions(Options):
    """What is measured and against what. More `samples` lower the bias of a FID: compare only at equal `samples`."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"stored": "max_features", "any_size": "allow_mixed_sizes"}
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"metrics": {"accuracy": "class_accuracy"}}

    metrics: tuple[MetricName, ...] | None = Field(default=None, min_length=1)
    """What to measure. null, for a family that draws images: fid, recall, real_fid and, where it is class-conditional,
    class_accuracy; for any other family, what it can do; for images without a model: fid, kid, precision, recall, density and
    coverage.

    fid: of the samples against the whole reference (Heusel et al. 2017). kid: the kernel distance (Binkowski et al. 2018).
    inception_score: with its deviation over splits (Salimans et al. 2016). precision, recall: share of the samples within the
    manifold of the reference, and of the reference within that of the samples (Kynkäänniemi et al. 2019). density, coverage:
    the same from neighbourhoods of real images only (Naeem et al. 2020). intra_fid: mean FID within each class (Miyato & Koyama
    2018); it stores all feature vectors on disk, and keeps the reference's for the next evaluation (8 KiB an image for
    Inception). class_accuracy: share of the samples that an independent classifier assigns to the class they were conditioned
    on. classification_accuracy_score: share of held-out images that a classifier trained on the samples recognises (Ravuri &
    Vinyals 2019). two_sample_test: accuracy of a nearest-neighbour classifier that tells samples from real images (Lopez-Paz &
    Oquab 2017). nearest_neighbours: the images of the reference nearest to some samples, and a picture of them. real_fid: FID
    of real images against other real images, as many as samples: what a perfect model would score with so many (it gives the
    scale of a fid in features that are not Inception's). bits_per_dim: negative log-likelihood of `split` per dimension, or a
    bound of it. reconstruction: error of the images of `split` after encoding and decoding. rfid: FID of those reconstructions
    against `split` itself."""
    samples: int = Field(default=10_000, ge=2)
    """Images to generate."""
    features: str = "classifier"
    """`classifier`: a small network trained on the spot on the data's labels. `clean`, `legacy_tensorflow`,
    `legacy_pytorch`: FID's Inception, as in clean-fid's modes of these names. `timm:MODEL`: a model of timm, such as
    timm:vit_large_patch14_dinov2.lvd142m for the FD with DINOv2. Or the path of a TorchScript file, which is called as
    net(images, return_features=True): uint8 images [n, 3, H, W] in, float features [n, d] out, as with FID's published
    inception-2015-12-05.pt. `classifier` has as many channels as the data; the others see grey as three equal channels."""
    weights: str | None = None
    """Path of the weights of `clean`, `legacy_*` or `timm:MODEL`; null: from the cache, or fetched."""
    reference: str = "train"
    """What samples are compared with: `train` or `validation`, the data's splits; or the path of an index of shards, a folder,
    a tar or zip of images, an npz of samples (guided-diffusion's), or an npz of moments (pytorch-fid's, clean-fid's,
    guided-diffusion's, or made by --save-moments)."""
    split: Literal["train", "validation"] = "validation"
    """Split that bits_per_dim, reconstruction and rfid are measured on."""
    split_samples: int | None = Field(default=None, gt=0)
    """Number of samples of the split to measure them on, a fixed random subset; null: all."""
    likelihood_evaluations: int | None = Field(default=None, ge=2)
    """Evaluations of the network for each sample's bits_per_dim, where that is a bound of many terms: fewer evaluations than
    terms estimate it without bias (the mean over samples is right, each sample's value is noisy); null: all terms."""
    allow_mixed_sizes: bool = False
    """Let the feature network resize images of different sizes, within a set or between samples and reference; false: that
    is an error, since a FID across resolutions is rarely meant."""
    max_features: int = Field(default=10_000, ge=2)
    """The most feature vectors kept of each side, a random subset, for metrics that compare single vectors (kid, precision,
    recall, density, coverage, two_sample_test); and the most samples that classification_accuracy_score trains on."""
    batch_size: int = Field(default=100, gt=0)
    """Images per batch on each rank; does not change the result."""
    workers: int | None = Field(default=None, ge=0)
    """Processes per rank that read images; null: data.workers, and 2 where there is no recipe."""
    seed: int = Field(default=0, ge=0)
    """Keys the samples' noise and labels; independent of run.seed."""
    candidates: int = Field(default=1, ge=1)
    """Rejection sampling: candidates drawn for each sample, of which the one is kept to whose class `classifier` gives the
    highest probability; 1: no selection."""
    classifier: str = "classifier"
    """What selects among candidates: `classifier`, a network trained on the spot and used for nothing else; or the path of a
    TorchScript network from uint8 [n, 3, H, W], which sees grey as three equal channels, to logits [n, classes]."""
    recall_neighbours: int = Field(default=3, ge=1)
    """The k of the k-nearest-neighbour balls of precision and recall."""
    coverage_neighbours: int = Field(default=5, ge=1)
    """The k of the balls of density and coverage."""
    kid_subsets: int = Field(default=100, ge=1)
    """Random subsets that kid is the mean over."""
    kid_subset_size: int = Field(default=1000, ge=2)
    """The most vectors of each side in one subset."""
    score_splits: int = Field(default=10, ge=1)
    """Parts of the samples over which inception_score is averaged."""
    pictured_samples: int = Field(default=10, ge=1)
    """Samples whose nearest_neighbours are found."""
    pictured_neighbours: int = Field(default=7, ge=1)
    """Neighbours found for each."""

    def chosen(self, family: Family) -> tuple[MetricName, ...]:
        """The metrics to measure for a model of a family."""
        if self.metrics is not None:
            return self.metrics
        samples = family.ability(Samples)
        if samples is not None:
            return tuple(name for name in DEFAULT_METRICS if name != "class_accuracy" or "label" in samples.conditions)
        return tuple(name for name in DEFAULT_HELD_OUT if family.ability(HELD_OUT[name]) is not None)
