"""Fixtures shared by the tests of kernels."""

import pytest
import torch


@pytest.fixture(params=[1, 2, 4], ids="{} threads".format)
def threads(request):
    """How many threads kernels run on."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
