"""Real images for evaluation's tests: scikit-learn's digits at 8 pixels."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch

from bigtrain.data.digits import digits_index
from bigtrain.data.index import Index
from tests.features.feature_scripts import ColourMoments


@pytest.fixture(scope="session")
def pristine_digits(one_cache_for_all) -> Path:
    return digits_index("train", (8, 8)).parent


@pytest.fixture
def digits(pristine_digits, tmp_path) -> tuple[Index, Index]:
    """(train, validation), in a folder that nothing has been kept in yet."""
    folder = tmp_path / "digits"
    shutil.copytree(pristine_digits, folder)
    return Index.read(folder / "train.json"), Index.read(folder / "validation.json")


@pytest.fixture(scope="session")
def script(tmp_path_factory) -> str:
    """The path of a TorchScript feature network with 10 dimensions."""
    path = tmp_path_factory.mktemp("script") / "colour_moments.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        torch.jit.script(ColourMoments()).save(path)
    return str(path)
