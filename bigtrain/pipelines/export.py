"""Writes a trained model as a diffusers folder that needs no run, no data and no pickle to be used.

OUT/
  model_index.json  pipeline.py  model/{config.json, diffusion_pytorch_model.safetensors}
  recipe.yaml       the recipe of the run
  provenance.json   step, weights (averaged or raw), data
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from bigtrain.errors import UserMistake
from bigtrain.pipelines.pipeline import ExportedModel, FamilyPipeline
from bigtrain.runs import atomic

PIPELINE_SOURCE = '''"""The pipeline of this folder; needs `pip install bigtrain`.

    DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
"""

from bigtrain.pipelines.pipeline import FamilyPipeline

__all__ = ["FamilyPipeline"]
'''


def export(
    out: Path,
    networks: Mapping[str, nn.Module],
    *,
    family_section: Mapping[str, Any],
    recipe_yaml: str,
    provenance: Mapping[str, Any],
) -> None:
    """Writes the folder `out`, whole or not at all.

    `networks`: those that `family.sample` takes, in at least float32. `provenance["data"]` describes the data as a
    checkpoint does. Raises UserMistake if `out` exists or cannot be written.
    """
    if out.exists():
        raise UserMistake(f"{out}: exists already; export into a new folder, or remove this one first")
    problem = {key: provenance["data"][key] for key in ("image_size", "classes", "class_counts")}
    temporary = atomic.aside(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        model = ExportedModel(family=dict(family_section), problem=problem)
        for player, network in networks.items():
            model.networks[player].load_state_dict(network.state_dict())
        FamilyPipeline(model).save_pretrained(str(temporary), safe_serialization=True)
        atomic.write_bytes(temporary / "pipeline.py", PIPELINE_SOURCE.encode())
        atomic.write_bytes(temporary / "recipe.yaml", recipe_yaml.encode())
        atomic.write_json(temporary / "provenance.json", dict(provenance))
        os.rename(temporary, out)
    except OSError as error:
        raise UserMistake(f"{out}: cannot write the export ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
