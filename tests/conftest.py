"""What every test shares."""

from __future__ import annotations

import os

# Before NumPy loads: the matrices of the tests are too small to be worth a second thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest


@pytest.fixture(autouse=True)
def one_torch_thread(request: pytest.FixtureRequest) -> None:
    """Small tensors are slower on many threads."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
