"""A real GPU for the tests marked ``gpu``, which are skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcrec.backend.device import use_device
from hpcrec.errors import DeviceError


@pytest.fixture(scope="session")
def gpu() -> Any:
    """CuPy, with a GPU current; the test is skipped with the reason where there is none."""
    try:
        return use_device("gpu").module
    except DeviceError as error:
        pytest.skip(str(error))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests that ask for the GPU."""
    for item in items:
        if "gpu" in getattr(item, "fixturenames", ()) and Path(__file__).parent in item.path.parents:
            item.add_marker("gpu")
