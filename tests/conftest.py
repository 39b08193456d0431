"""Fixtures. Shapes and types of every call in the package are checked while testing (jaxtyping's hook)."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the tests themselves run in parallel
os.environ.setdefault("OMP_NUM_THREADS", "1")  # so do the commands that they start


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where there is none."""
    folder = Path(os.environ.get("DRAW_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "README.md").is_file():
        pytest.skip(f"no real data in {folder}; set DRAW_DATA")
    return folder
