"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data, named by PRMKIT_DATA; tests that need it skip where it is not set."""
    root = os.environ.get("PRMKIT_DATA")
    if not root:
        pytest.skip("PRMKIT_DATA is not set")
    return Path(root).resolve()
