"""Experiments on one thread leave torch as they found it."""

import pytest
import torch
from rheoscope.lab.threads import one_thread


def test_one_thread_inside_and_as_many_as_before_after_an_error() -> None:
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="stop"), one_thread():  # noqa: PT012 - what is inside is the test
            inside = torch.get_num_threads()
            raise RuntimeError("stop")
        assert (inside, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(1)
