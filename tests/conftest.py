"""Fixtures shared by all tests: where the real data lie, and a way to run the command line."""

import gc
import os
from pathlib import Path

import hypothesis
import pytest

from tests.children import servers

# Hypothesis would fail an example after 200 ms, which on a busy machine says nothing of the code.
hypothesis.settings.register_profile("tfigkd", deadline=None)
hypothesis.settings.load_profile("tfigkd")

pytest.register_assert_rewrite("tests.faults.runs")
SHARED = Path(__file__).resolve().parents[2] / "shared"
# files that take longest, in processor time; `make test` starts them first, so that no worker waits long for another
LONGEST = (
    "test_tutorial",
    "test_routes",
    "test_arms",
    "test_kill",
    "test_jax",
    "test_bad_input",
    "test_preflight",
    "test_recipes",
    "test_run",
    "test_pages",
    "test_distiller_losses",
    "test_distiller",
    "test_study",
    "test_search",
    "test_budget",
    "test_metrics",
    "test_integrated_gradients",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first; the order within a file stays."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def cifar10_dir() -> Path:
    """A prepared tfds directory that holds CIFAR-10."""
    directory = Path(os.environ.get("TFDS_DATA_DIR", SHARED / "tfds"))
    if not (directory / "cifar10").is_dir():
        pytest.skip(f"NEEDS REAL DATA: no prepared CIFAR-10 in {directory}; set TFDS_DATA_DIR")
    return directory


@pytest.fixture(scope="session")
def weights_dir() -> Path:
    """The published weights as .npz files."""
    directory = Path(os.environ.get("TFIGKD_WEIGHTS_DIR", SHARED / "weights"))
    if not directory.is_dir():
        pytest.skip(f"NEEDS PUBLISHED WEIGHTS: no folder {directory}; set TFIGKD_WEIGHTS_DIR")
    return directory


@pytest.fixture(autouse=True, scope="module")
def _memory_given_back():
    """Collect the models of a test file when it has ended; their cycles are large."""
    yield
    gc.collect()


@pytest.fixture(autouse=True, scope="session")
def _children_ended():
    """End the processes that fork children."""
    yield
    servers.close()
