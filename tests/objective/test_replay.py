"""Replayed sub-batches compute what visited ones do, bitwise."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import RANDOM_AND_NORMALIZED, build
from references import assert_no_trace, trace_of
from tape import Tape
from three_steps import VARIANTS, normalized, objective, steps
from torch import Tensor, nn

from fullbatch.objective.replay import Recorder
from fullbatch.runtime.cuda_graphs import CudaGraphs


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_replayed_evaluations_are_those_of_the_loop(options: dict[str, Any]) -> None:
    tape = Tape()
    replayed, expected = steps(normalized(), recorder=tape, **options), steps(normalized(), **options)
    assert tape.num_replays > tape.num_records > 0
    # forward mode takes other operators when they are recorded one by one; the gradients of a bias before batch norm
    # are rounding alone
    tolerance = 1e-14 if "forward-over-reverse" in options.values() else 0.0
    for one, other in zip(replayed, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=tolerance)


def test_hessian_products_are_replayed() -> None:
    tape, model = Tape(), normalized()
    v = [torch.ones_like(p) for p in model.parameters()]
    replayed, expected = (objective(model, recorder=recorder).hessian_product(v) for recorder in (tape, None))
    assert tape.num_replays > 0
    assert all(torch.equal(*pair) for pair in zip(replayed, expected, strict=True))


def test_evaluations_leave_no_trace() -> None:
    model, tape = normalized(), Tape()
    before = trace_of(model)
    objective(model, recorder=tape, block_strength=0.5).evaluate()
    assert tape.num_replays > 0
    assert_no_trace(model, before)


def test_a_pass_records_each_shape_once() -> None:
    tape = Tape()
    objective(normalized(), recorder=tape, sizes=[4, 3] * 4 + [5]).evaluate()
    assert tape.num_records == 2  # of 4 and 3 samples; one sub-batch of 5 does not pay
    assert tape.num_replays == 8 - 2 * 3  # two visits and a recording of each shape


@pytest.mark.parametrize("name", RANDOM_AND_NORMALIZED)
def test_models_that_draw_are_not_replayed(name: str, caplog: pytest.LogCaptureFixture) -> None:
    tape = Tape()
    with caplog.at_level(logging.WARNING):
        found = steps(build(name), recorder=tape)
    assert tape.num_records == 0
    assert caplog.text.count("cannot be recorded and replayed here, going on without (the model draws") == 1
    assert all(torch.equal(*pair) for pair in zip(found, steps(build(name)), strict=True))


def test_a_model_that_waits_is_not_replayed(caplog: pytest.LogCaptureFixture) -> None:
    class Waits(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * float(inputs.sum() > 0) + inputs

    def model() -> nn.Module:
        return nn.Sequential(Waits(), normalized())  # nothing is done before it waits, as on a GPU

    tape = Tape()
    with caplog.at_level(logging.WARNING):
        found = steps(model(), recorder=tape, block_strength=0.5)
    assert tape.num_records == 1
    assert "going on without (aten._local_scalar_dense" in caplog.text
    assert all(torch.equal(*pair) for pair in zip(found, steps(model(), block_strength=0.5), strict=True))


def test_the_first_of_several_errors_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Fails:
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            try:
                raise RuntimeError("a model that waits\nand more")
            finally:
                raise RuntimeError("what was recorded is void")

    with caplog.at_level(logging.WARNING):
        assert objective(normalized(), recorder=Fails()).evaluate().loss.isfinite()
    assert caplog.text.count("going on without (a model that waits)") == 1


class Counting:
    """Counts what another recorder records and replays."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.num_records, self.num_replays = recorder, 0, 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        replay = self.recorder.record(work)
        self.num_records += 1

        def counted() -> None:
            self.num_replays += 1
            replay()

        return counted


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"block_strength": 0.5}, {"block_strength": 0.5, "acc_strength": 0.3}])
def test_cuda_graphs_compute_what_the_loop_does(options: dict[str, Any]) -> None:

    counted = Counting(CudaGraphs(torch.device("cuda")))
    replayed, expected = steps(normalized().cuda(), recorder=counted, **options), steps(normalized().cuda(), **options)
    assert counted.num_replays > counted.num_records > 0
    for one, other in zip(replayed, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
