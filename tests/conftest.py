import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The tests' tensors are small, and bit-exact comparisons must depend neither on the machine nor on other tests."""
    torch.set_num_threads(1)
