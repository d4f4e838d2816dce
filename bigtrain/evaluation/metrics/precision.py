"""The share of the samples within the manifold of the reference (Kynkäänniemi et al. 2019, eq. 1 and 2)."""

from bigtrain.evaluation.metrics.neighbourhood_metric import NeighbourhoodMetric


class Precision(NeighbourhoodMetric, name="precision"):
    higher_is_better = ("precision",)
    neighbours_key = "recall_neighbours"
