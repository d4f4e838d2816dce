"""The share of real neighbourhoods with some sample in them (Naeem et al. 2020, eq. 4)."""

from bigtrain.evaluation.metrics.neighbourhood_metric import NeighbourhoodMetric


class Coverage(NeighbourhoodMetric, name="coverage"):
    higher_is_better = ("coverage",)
    neighbours_key = "coverage_neighbours"
