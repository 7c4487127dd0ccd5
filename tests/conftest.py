"""What all tests share: one thread, for the same sums everywhere and for the other cores."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_lasting_flush_of_denormals():
    """A training flushes denormals for the whole process; hypothesis would trip over it later."""
    yield
    torch.set_flush_denormal(False)
