"""The folder of pictures that the shard command's tests read."""

from tests.data.conftest import pictures

__all__ = ["pictures"]
