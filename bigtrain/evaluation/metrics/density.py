"""The mean number of real neighbourhoods around a sample, over their k (Naeem et al. 2020, eq. 3)."""

from bigtrain.evaluation.metrics.neighbourhood_metric import NeighbourhoodMetric


class Density(NeighbourhoodMetric, name="density"):
    higher_is_better = ("density",)
    neighbours_key = "coverage_neighbours"
