"""Sub-batches in flight at the same time find what they find one after the other, whenever the streams work."""

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from cases import CLASSES, RANDOM_AND_NORMALIZED, build
from references import assert_no_trace, trace_of
from streams import Anytime, Immediate, Late
from tape import Tape
from three_steps import VARIANTS, normalized, objective, steps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.in_flight import Stream
from fullbatch.runtime.compilation import compile_model
from fullbatch.runtime.cuda_graphs import CudaGraphs
from fullbatch.runtime.cuda_streams import streams_on


def anytime(number: int, seed: int = 0) -> list[Anytime]:
    together: list[Anytime] = []
    return [Anytime(together, seed + place) for place in range(number)]


ADVERSARIES: dict[str, Callable[[], Sequence[Stream]]] = {
    "one, late": lambda: [Late()],
    "two, at once": lambda: [Immediate(), Immediate()],
    "three, late": lambda: [Late(), Late(), Late()],
    "more than sub-batches, late": lambda: [Late() for _ in range(40)],
    "two, at any time": lambda: anytime(2),
    "four, at any time": lambda: anytime(4, seed=10),
}


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor], model: nn.Module) -> None:
    """The same bits but in running statistics, which compose within rounding."""
    moving = {tuple(buffer.shape) for buffer in model.buffers()} - {()}
    for one, other in zip(found, expected, strict=True):
        if tuple(one.shape) in moving:
            torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_evaluations_are_those_of_the_loop(options: dict[str, Any]) -> None:
    model = normalized()
    assert_same(steps(model, streams=anytime(3), **options), steps(normalized(), **options), model)


@pytest.mark.parametrize("name", ADVERSARIES)
def test_it_does_not_matter_how_many_there_are_and_when_they_work(name: str) -> None:
    model, options = normalized(), {"block_strength": 0.5, "acc_strength": 0.3}
    assert_same(steps(model, streams=ADVERSARIES[name](), **options), steps(normalized(), **options), model)


@pytest.mark.parametrize("name", RANDOM_AND_NORMALIZED)
def test_dropout_masks_are_those_of_the_sub_batch(name: str) -> None:
    model = build(name)
    assert_same(steps(model, streams=anytime(3), block_strength=0.5), steps(build(name), block_strength=0.5), model)


def test_hessian_products_are_those_of_the_loop() -> None:
    model = normalized()
    v = [torch.ones_like(p) for p in model.parameters()]
    found, expected = (objective(model, streams=some).hessian_product(v) for some in (anytime(3), ()))
    assert_same(found, expected, model)


@pytest.mark.parametrize("options", [{}, {"block_strength": 0.5, "acc_strength": 0.3}], ids=str)
def test_each_stream_replays_recordings_of_its_own(options: dict[str, Any]) -> None:
    tape, model = Tape(), normalized()
    found = steps(model, streams=anytime(2), recorder=tape, sizes=[3] * 11, **options)
    assert tape.num_replays > tape.num_records > 0
    assert tape.num_records % 2 == 0
    assert_same(found, steps(normalized(), sizes=[3] * 11, **options), model)


def test_evaluation_mode_uses_the_running_statistics() -> None:
    def found(streams: Sequence[Stream]) -> tuple[nn.Module, list[Tensor]]:
        model = normalized()
        objective(model).evaluate(update_buffers=True)
        model.eval()
        evaluation = objective(model, streams=streams).evaluate(update_buffers=True)
        return model, [evaluation.loss, *evaluation.gradient, *model.buffers()]

    (model, ours), (_, expected) = found(anytime(2)), found(())
    assert_same(ours, expected, model)


def test_statistics_that_are_frozen_stay_and_are_used() -> None:
    def found(streams: Sequence[Stream]) -> list[Tensor]:
        model = nn.Sequential(normalized(), nn.BatchNorm1d(CLASSES).double().eval())
        evaluation = objective(model, streams=streams).evaluate(update_buffers=True)
        assert torch.equal(model[1].running_var, torch.ones(CLASSES, dtype=torch.float64))
        return [evaluation.loss, *evaluation.gradient]

    assert all(torch.equal(*pair) for pair in zip(found(anytime(2)), found(()), strict=True))


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_move_in_the_order_of_the_sub_batches(momentum: float | None) -> None:
    def moved(streams: Sequence[Stream]) -> list[Tensor]:
        layer = nn.BatchNorm2d(2, momentum=momentum)
        twice = nn.Sequential(layer, nn.Tanh(), layer, nn.Flatten(), nn.Linear(32, CLASSES)).double()
        target = objective(twice, streams=streams, sizes=[16, 1, 9, 2, 5])
        target.evaluate(update_buffers=True)
        target.evaluate(update_buffers=True)
        return list(twice.buffers())

    torch.manual_seed(0)
    for one, other in zip(moved([Late(), Late(), Late()]), moved(()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_a_momentum_that_is_changed_between_passes_is_the_new_one() -> None:
    def moved(streams: Sequence[Stream]) -> list[Tensor]:
        model = normalized()
        target = objective(model, streams=streams)
        for momentum in (0.1, 0.5, None):
            model[1].momentum = momentum
            target.evaluate(update_buffers=True)
        return list(model.buffers())

    for one, other in zip(moved([Late(), Late()]), moved(()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_evaluations_leave_no_trace() -> None:
    model = normalized()
    before, tensors = trace_of(model), [*model.parameters(), *model.buffers()]
    objective(model, streams=anytime(3), block_strength=0.5).evaluate()
    assert_no_trace(model, before)
    assert all(one is other for one, other in zip(tensors, [*model.parameters(), *model.buffers()], strict=True))


class Tied(nn.Module):
    """A weight at two places, one that is not trained, and layers with lists of their weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.one, self.other, self.fixed = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)
        self.other.weight = self.one.weight
        self.fixed.weight.requires_grad_(requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        rows, _ = self.recurrent(inputs.flatten(2).unflatten(2, (-1, 8)).flatten(1, 2))
        return self.fixed(torch.tanh(self.other(torch.tanh(self.one(rows[:, -1])))))


def test_every_parameter_has_one_copy_wherever_it_is() -> None:
    def found(streams: Sequence[Stream]) -> list[Tensor]:
        evaluation = objective(Tied().double(), streams=streams, block_strength=0.5).evaluate()
        return [evaluation.loss, *evaluation.gradient]

    ours, expected = found(anytime(2)), found(())
    assert len(ours) == 1 + 4 + 3 + 1
    assert all(gradient.any() for gradient in ours)
    assert all(torch.equal(*pair) for pair in zip(ours, expected, strict=True))


def test_other_buffers_that_move_are_met_one_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(32, CLASSES)), nn.BatchNorm1d(CLASSES)).double()

    with caplog.at_level(logging.WARNING):
        found = steps(model(), streams=[Late(), Late()])
    assert caplog.text.count("one sub-batch at a time: the buffer 1.parametrizations.weight.0._u moves") == 1
    assert all(torch.equal(*pair) for pair in zip(found, steps(model()), strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler, about itself
def test_compiled_code_reads_the_parameters_of_the_stream() -> None:
    model = normalized()
    if not compile_model(model, objective(model).evaluate):
        pytest.skip("no compiler here")
    found = steps(model, streams=anytime(3), block_strength=0.5)
    for one, other in zip(found, steps(normalized(), block_strength=0.5), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    torch.compiler.reset()


class Counting(Late):
    """Counts the streams that are busy."""

    busy = most = 0

    def start(self, work: Callable[[], None]) -> None:
        super().start(work)
        Counting.busy += 1
        Counting.most = max(Counting.busy, Counting.most)

    def join(self) -> None:
        Counting.busy -= len(self.waiting)
        super().join()


def test_no_two_streams_read_the_same_parameters() -> None:
    """What finite differences move for one sub-batch must not be what another reads."""
    places: dict[int, list[int]] = {}
    block = -1

    class Notes(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            places.setdefault(block, []).append(self.weight.data_ptr())
            return super().forward(inputs)

    class Numbered(Immediate):
        def start(self, work: Callable[[], None]) -> None:
            nonlocal block
            block += 1
            super().start(work)

    model = nn.Sequential(nn.Flatten(), Notes(32, CLASSES)).double()
    objective(model, streams=[Numbered() for _ in range(3)], block_strength=0.5).evaluate()
    assert [len(set(found)) for found in places.values()] == [1] * 7
    in_order = [found[0] for found in places.values()]
    assert len({model[1].weight.data_ptr(), *in_order[:3]}) == 4
    assert in_order[3:6] == in_order[:3]


@pytest.mark.parametrize("number", [1, 3])
def test_each_stream_has_one_sub_batch(number: int) -> None:
    Counting.busy = Counting.most = 0
    objective(normalized(), streams=[Counting() for _ in range(number)]).evaluate()
    assert (Counting.busy, Counting.most) == (0, number)


def test_inputs_are_kept_until_they_have_been_read() -> None:
    """A stream that has been given work still reads; the memory of what nobody keeps is given to others."""
    alive: list[weakref.ref[Tensor]] = []

    class Reads(Immediate):
        reading: weakref.ref[Tensor] | None = None

        def start(self, work: Callable[[], None]) -> None:
            work()
            self.reading = alive[-1]

        def join(self) -> None:
            assert self.reading is not None
            assert self.reading() is not None

    class Fresh:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(7):
                inputs = torch.randn(5, 2, 4, 4, dtype=torch.float64)
                alive.append(weakref.ref(inputs))
                yield inputs, torch.zeros(5, dtype=torch.long)

    FullBatchObjective(
        nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double(),
        F.cross_entropy,
        Fresh(),
        streams=[Reads(), Reads(), Reads()],
    ).loss()
    assert len(alive) == 7
    assert sum(some() is not None for some in alive) <= 1  # the generator's last one


@pytest.mark.gpu
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("options", [{}, {"block_strength": 0.5}, {"block_strength": 0.5, "acc_strength": 0.3}])
def test_cuda_streams_compute_what_the_loop_does(options: dict[str, Any], recorded: bool) -> None:
    device = torch.device("cuda")
    recorder = CudaGraphs(device) if recorded else None
    found = steps(normalized().cuda(), streams=streams_on(device, 3), recorder=recorder, sizes=[1] * 33, **options)
    for one, other in zip(found, steps(normalized().cuda(), sizes=[1] * 33, **options), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
