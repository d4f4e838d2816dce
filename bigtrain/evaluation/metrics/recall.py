"""The share of the reference within the manifold of the samples (Kynkäänniemi et al. 2019, eq. 1 and 2)."""

from bigtrain.evaluation.metrics.neighbourhood_metric import NeighbourhoodMetric


class Recall(NeighbourhoodMetric, name="recall"):
    higher_is_better = ("recall",)
    neighbours_key = "recall_neighbours"
