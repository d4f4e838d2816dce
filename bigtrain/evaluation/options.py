"""The options of evaluation: section `evaluation` of a recipe."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from bigtrain.errors import UserError
from bigtrain.evaluation.metrics.registry import EARLIER_NAMES, OF_ANY_FEATURES, InceptionName, MetricName, canonical
from bigtrain.features.opening import CLASSIFIER, NAMES, features_label, is_script
from bigtrain.features.scripts import (
    A_PROGRAM,
    STORED,
    check_same,
    name_if_script,
    named_on_command_line,
    without_digest,
)
from bigtrain.options import MOST, Batch, Count, Options, Seed, Width, Workers


class EvaluationOptions(Options):
    """What is measured and against what. More `samples` lower the bias of an fd: compare only at equal `samples`."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "stored": "max_features",
        "any_size": "allow_mixed_sizes",
        "kid_subsets": "kd_subsets",
        "kid_subset_size": "kd_subset_size",
    }
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"metrics": EARLIER_NAMES}
    former_meanings: ClassVar[Mapping[str, Mapping[str, str]]] = {"metrics": OF_ANY_FEATURES}

    metrics: tuple[Literal[MetricName, InceptionName], ...] | None = Field(default=None, min_length=1)
    """What to measure. null, for a family that draws images: fd, recall, fd_real and, where it is class-conditional,
    class_accuracy; for any other family, what it can do; for images without a model: fd, kd, precision, recall, density and
    coverage.

    fd: the Frechet distance of the samples' features and the whole reference's (Heusel et al. 2017). kd: the kernel distance
    (Binkowski et al. 2018). The result adds the features to the name of a distance, such as fd_classifier or fd_dinov2; only in
    the features of FID's Inception it is fid, kid, intra_fid, rfid or fid_real, and may be asked for so.

    inception_score: with its deviation over splits (Salimans et al. 2016). precision, recall: share of the samples within the
    manifold of the reference, and of the reference within that of the samples (Kynkäänniemi et al. 2019). density, coverage:
    the same from neighbourhoods of real images only (Naeem et al. 2020). intra_fd: mean fd within each class (Miyato & Koyama
    2018); it stores all feature vectors on disk, and keeps the reference's for the next evaluation (8 KiB an image for
    Inception). class_accuracy: share of the samples that an independent classifier assigns to the class they were conditioned
    on. classification_accuracy_score: share of held-out images that a classifier trained on the samples recognises (Ravuri &
    Vinyals 2019). two_sample_test: accuracy of a nearest-neighbour classifier that tells samples from real images (Lopez-Paz &
    Oquab 2017). nearest_neighbours: the images of the reference nearest to some samples, and a picture of them. modes: of
    points, how many of the data's classes are met, the share of good points, and the reverse KL of their classes. fd_real: fd
    of real images and other real images, as many as samples: what a perfect model would score with so many (it gives the
    scale of an fd in features that are not Inception's). bits_per_dim: negative log-likelihood of `split` per dimension, or a
    bound of it. reconstruction: error of the images of `split` after encoding and decoding. rfd: fd of those reconstructions
    and `split` itself. psnr, ssim (Wang et al. 2004): of each output and its target in `split`, the mean over images; outputs
    are the samples of a family that draws a picture given a picture, else reconstructions. held_out_accuracy: share of `split`
    whose class the model tells; a class-conditional generative model tells the one under which a sample is the most likely,
    which costs as much as bits_per_dim for every class."""
    samples: int = Field(default=10_000, ge=2, le=MOST)
    """Images to generate."""
    features: str = "classifier"
    """`classifier`: a small network trained on the spot on the data's labels. `clean`, `legacy_tensorflow`,
    `legacy_pytorch`: FID's Inception, as in clean-fid's modes of these names. `timm:MODEL`: a model of timm, such as
    timm:vit_large_patch14_dinov2.lvd142m for the FD with DINOv2. Or, on the command line only, the path of a TorchScript file,
    a program, which runs with your rights and is stored as torchscript:NAME@SHA256. It is called as
    net(images, return_features=True): uint8 images [n, 3, H, W] in, float features [n, d] out, as with FID's published
    inception-2015-12-05.pt. `classifier` has as many channels as the data; the others see grey as three equal channels."""
    weights: str | None = None
    """Path of the weights of `clean`, `legacy_*` or `timm:MODEL`, on the command line only if it is a TorchScript file other
    than the published one; null: from the cache, or fetched."""
    reference: str = "train"
    """What samples are compared with: `train` or `validation`, the data's splits; or, for images, the path of an index of
    shards, a folder, a tar or zip of images, an npz of samples (guided-diffusion's), or an npz of moments (pytorch-fid's,
    clean-fid's, guided-diffusion's, or made by --save-moments)."""
    split: Literal["train", "validation"] = "validation"
    """Split that bits_per_dim, held_out_accuracy, reconstruction, rfd, psnr and ssim are measured on."""
    split_samples: Count | None = None
    """Number of samples of the split to measure them on, a fixed random subset; null: all."""
    likelihood_evaluations: int | None = Field(default=None, ge=2, le=MOST)
    """Evaluations of the network for each sample's likelihood, where that is a bound of many terms: fewer evaluations than
    terms estimate it without bias (the mean over samples is right, each sample's value is noisy); null: all terms."""
    likelihood_samples: int = Field(default=1, ge=1, le=2**20)
    """Importance samples for each sample's likelihood, where a model of latent variables takes several: the bound is tighter
    with more (Burda et al. 2016)."""
    pairs_channel: Literal["rgb", "y"] = "rgb"
    """What psnr and ssim compare: all channels alike; or y, the luma of ITU-R BT.601 in 16 .. 235, as Matlab makes it and
    papers on super-resolution report (some 2 dB higher)."""
    pairs_border: int = Field(default=0, ge=0, le=2**15)
    """Pixels on each side that psnr and ssim leave out."""
    allow_mixed_sizes: bool = False
    """Let the feature network resize images of different sizes, within a set or between samples and reference; false: that
    is an error, since a distance across resolutions is rarely meant."""
    max_features: int = Field(default=10_000, ge=2, le=2**24)
    """The most feature vectors kept of each side, a random subset, for metrics that compare single vectors (kd, precision,
    recall, density, coverage, two_sample_test); and the most samples that classification_accuracy_score trains on."""
    batch_size: Batch = 100
    """Images per batch on each rank; does not change the result."""
    workers: Workers | None = None
    """Processes per rank that read images; null: data.workers, and 2 where there is no recipe."""
    seed: Seed = 0
    """Keys the samples' noise and labels; independent of run.seed."""
    candidates: int = Field(default=1, ge=1, le=2**16)
    """Rejection sampling: candidates drawn for each sample, of which the one is kept to whose class `classifier` gives the
    highest probability; 1: no selection."""
    classifier: str = "classifier"
    """What selects among candidates: `classifier`, a network trained on the spot and used for nothing else; or, on the command
    line only, the path of a TorchScript network, a program that runs with your rights, from uint8 [n, 3, H, W], which sees grey
    as three equal channels, to logits [n, classes]."""
    recall_neighbours: Width = 3
    """The k of the k-nearest-neighbour balls of precision and recall."""
    coverage_neighbours: Width = 5
    """The k of the balls of density and coverage."""
    kd_subsets: int = Field(default=100, ge=1, le=2**16)
    """Random subsets that kd is the mean over."""
    kd_subset_size: int | None = Field(default=None, ge=2, le=2**16)
    """The most vectors of each side in one subset; null: 1,000, and at most half of the smaller side, since subsets that are
    nearly all of it would agree and their deviation say nothing."""
    score_splits: Width = 10
    """Parts of the samples over which inception_score is averaged."""
    pictured_samples: Width = 10
    """Samples whose nearest_neighbours are found."""
    pictured_neighbours: Width = 7
    """Neighbours found for each."""

    @classmethod
    def without_ignored(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without what was accepted and changed nothing: weights of the classifier, a classifier without candidates, a metric
        that is named again."""
        earlier = dict(content)
        if earlier.get("features", CLASSIFIER) == CLASSIFIER:
            earlier.pop("weights", None)
        if earlier.get("candidates", 1) == 1:
            earlier.pop("classifier", None)
        if isinstance(earlier.get("metrics"), list | tuple):
            earlier["metrics"] = list(dict.fromkeys(map(str, earlier["metrics"])))
        return earlier

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "EvaluationOptions":
        if self.weights is not None and self.features == CLASSIFIER:
            raise ValueError("weights: features: classifier is trained on the spot and takes none; leave it null")
        if self.classifier != CLASSIFIER and self.candidates == 1:
            raise ValueError("classifier: selects among candidates, and there is 1; set candidates, or leave it out")
        twice = sorted({name for name in self.metrics or () if (self.metrics or ()).count(name) > 1})
        if twice:
            raise ValueError(f"metrics: names {twice[0]} twice")
        return self

    @model_validator(mode="after")
    def _published_names_are_of_inception(self) -> "EvaluationOptions":
        try:
            canonical(self.metrics or (), self.features_label)
        except ValueError as error:
            raise ValueError(f"metrics: {error}") from None
        return self

    @property
    def named_metrics(self) -> tuple[MetricName, ...] | None:
        """`metrics`, each once and by its name in whatever features."""
        return None if self.metrics is None else canonical(self.metrics, self.features_label)

    @property
    def features_label(self) -> str:
        """What results call the features."""
        return features_label(self.features)


# -- TorchScript files, which are programs: named by the command line, and by no file ------------------------------------------

_WORDS = {"features": NAMES, "classifier": CLASSIFIER}
"""The keys that may name such a file, and what else they may say."""


def stored_scripts(section: Mapping[str, Any], source: str, *, resolved: bool) -> dict[str, Any]:
    """Section `evaluation` of a file, if it names no path of a TorchScript file. Raises UserError if it does.

    `resolved`: whether it is the recipe of a run or an export; earlier versions wrote paths there, and what they trained must
    still be sampled, so the path becomes a word that names no file.
    """
    paths = {key: path for key, path in _scripts_in(section).items() if not path.startswith(STORED)}
    if resolved:
        return {**section, **{key: without_digest(path) for key, path in paths.items()}}
    for key, path in paths.items():
        raise UserError(
            f"{source}: evaluation.{key}: {path} is not {_WORDS[key]}, and {A_PROGRAM}: remove the line, and give it with "
            f"evaluation.{key}=PATH"
        )
    return dict(section)


def named_scripts(section: Mapping[str, Any]) -> dict[str, Any]:
    """Section `evaluation` of the command line, which may name TorchScript files: their paths become the words that are stored,
    and this process may run them. Raises UserError for a path where there is no file."""
    words = {
        key: path if path.startswith(STORED) else named_on_command_line(path, f"evaluation.{key}", instead=_WORDS[key])
        for key, path in _scripts_in(section).items()
    }
    if isinstance(section.get("weights"), str):
        name_if_script(section["weights"], "evaluation.weights")
    return {**section, **words}


def same_scripts(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The words of `now` by key, where `before` names a file of that name without its digest."""
    return {key: now[key] for key in _WORDS if before[key] == without_digest(now[key])}


def check_same_scripts(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError if TorchScript files of two sections share a name, but not their bytes."""
    for key in _WORDS:
        check_same(before.get(key), now.get(key), f"evaluation.{key}")


def _scripts_in(section: Mapping[str, Any]) -> dict[str, str]:
    """The paths and stored words of TorchScript files by key."""
    given = {key: section[key] for key in _WORDS if isinstance(section.get(key), str)}
    return {key: name for key, name in given.items() if (is_script(name) if key == "features" else name != CLASSIFIER)}
