"""The real images and the feature network of evaluation's tests."""

from tests.evaluation.conftest import digits, pristine_digits, script

__all__ = ["digits", "pristine_digits", "script"]
