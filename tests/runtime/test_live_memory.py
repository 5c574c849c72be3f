"""The peak memory of a computation, counted by hand."""

import torch
from torch import Tensor

from fullbatch.runtime.live_memory import peak_of

CPU = torch.device("cpu")


def test_freed_tensors_do_not_count_and_views_count_once() -> None:
    kept: list[Tensor] = []

    def run() -> None:
        first = torch.zeros(1000)
        second = first + 1
        del first
        second.add_(1)  # in place
        kept.append(second.view(10, 100) * 2)  # the view is no memory of its own

    assert peak_of(run, CPU) == 2 * 4000
    assert peak_of(lambda: kept[0].mul_(2), CPU) == 0


def test_tensors_saved_for_the_backward_pass_count() -> None:
    weight = torch.ones(500, requires_grad=True)

    def run() -> None:
        outputs = weight.exp().exp()  # each keeps its result for the backward pass
        (outputs.sum()).backward()

    without_gradient = peak_of(lambda: weight.detach().exp().exp(), CPU)
    assert without_gradient == 2 * 2000
    assert peak_of(run, CPU) >= 3 * 2000
