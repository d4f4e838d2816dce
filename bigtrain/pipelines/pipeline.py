"""Kept for folders that were exported before `exchange/`: their pipeline.py and model_index.json name this module."""

from diffusers import DDPMPipeline
from diffusers.models.modeling_utils import ModelMixin  # diffusers looks for the base class of a model in its module

from bigtrain.exchange.pipeline import ExportedModel, FamilyPipeline, family_pipeline_of

PlainFamilyPipeline = family_pipeline_of(DDPMPipeline)

__all__ = ["ExportedModel", "FamilyPipeline", "ModelMixin", "PlainFamilyPipeline"]
