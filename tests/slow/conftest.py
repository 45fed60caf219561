"""The option that names the file for rows of long runs."""

from pathlib import Path


def pytest_addoption(parser):
    parser.addoption("--long-run-rows", type=Path, help="append the memory of long runs to this .csv")
