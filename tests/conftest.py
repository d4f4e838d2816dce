import os
import signal
import sys
from pathlib import Path

import pytest
import torch

import tests.field_reader
import tests.toy  # noqa: F401  (registers the families of the tests)
from tests.family_costs import (  # noqa: F401  (hooks)
    pytest_addoption,
    pytest_configure,
    pytest_itemcollected,
    pytest_terminal_summary,
)


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def one_cache_for_all(common_folder: Path) -> Path:
    """The digits' shards and the classifiers are made once, whichever test comes first in whichever worker."""
    cache = common_folder / "cache"
    os.environ["BIGTRAIN_CACHE"] = str(cache)
    return cache


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is named when it happens: a log that was cut off would not say it."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid} ({report.when})", file=sys.__stderr__, flush=True)


# A shell starts what it runs in the background with SIGINT ignored, and so would be what tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Two test processes share two cores; and what a test trains is the same in whichever process it is trained.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread_and_float32() -> None:
    """No test leaves its threads or its precision to the next."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
