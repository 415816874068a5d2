"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vllm: needs a vLLM in this environment, skipped without; see `make test-vllm`")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data, named by PRMKIT_DATA; tests that need it skip where it is not set."""
    root = os.environ.get("PRMKIT_DATA")
    if not root:
        pytest.skip("PRMKIT_DATA is not set")
    return Path(root).resolve()
