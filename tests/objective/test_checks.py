"""An objective refuses data and losses of which the sum over sub-batches is not one number."""

import copy
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CLASSES, MODELS, PARTITIONS, SAMPLES, build, cut, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from references import assert_no_trace, trace_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, TensorDataset

from fullbatch.analysis.flatness import flatness, m_sharpness
from fullbatch.analysis.gradient_statistics import gradient_statistics, sample_gradient_norms
from fullbatch.analysis.operators import gauss_newton
from fullbatch.analysis.sharpness import sharpness
from fullbatch.landscape.any_module import loss_landscape
from fullbatch.landscape.grid import Axis
from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.block_pass import SequentialPass
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.losses import Loss, loss_function
from fullbatch.objective.means import NO_SAMPLES
from fullbatch.tensors import trainable
from fullbatch.training.validation import recalibrated_batchnorm
from fullbatch.typing import LossFunction

WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
LOSSES = [None, "incorrect-xent", "batch-maxup", "maxup-3", "squared"]


def objective_of(loss_fn: LossFunction, data: Any = None, name: str = "tanh", **options: Any) -> FullBatchObjective:
    return FullBatchObjective(build(name), loss_fn, cut(*samples(), [20, 13]) if data is None else data, **options)


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*samples()), **({"batch_size": 7} | options))


def regression() -> list[tuple[Tensor, Tensor]]:
    inputs, _ = samples()
    return [(inputs, torch.randn(SAMPLES, CLASSES, dtype=torch.float64).softmax(1))]


# the loss


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.MSELoss(reduction="sum"),
        nn.CrossEntropyLoss(reduction="none"),
        partial(F.cross_entropy, reduction="sum"),
        nn.CrossEntropyLoss(weight=WEIGHTS),
        nn.NLLLoss(weight=WEIGHTS),
    ],
)
def test_a_loss_of_pytorch_with_another_reduction_is_refused_at_construction(loss_fn: LossFunction) -> None:
    with pytest.raises(ValueError, match=r"reduction='sum'.*'mean'|reduction='none'|class weights divides by the sum"):
        objective_of(loss_fn)


def squared_sum(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.square().sum()


def root_mean_square(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.square().mean().sqrt()


def largest(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none").max()


def unreduced(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="none")


def ignoring(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, ignore_index=1)


NO_MEANS: list[Callable[[Tensor, Tensor], Tensor]] = [
    squared_sum,
    root_mean_square,
    largest,
    ignoring,
    unreduced,
    nn.CrossEntropyLoss(ignore_index=1),
    partial(F.cross_entropy, weight=WEIGHTS),
    Loss(unreduced, lambda losses, outputs, labels: losses.sum()),
]


@pytest.mark.parametrize("loss_fn", NO_MEANS)
@pytest.mark.parametrize("name", ["tanh", "batchnorm"])
def test_any_other_loss_is_tested_in_every_first_evaluation(loss_fn: LossFunction, name: str) -> None:
    evaluations: list[Callable[[FullBatchObjective], Any]] = [
        lambda objective: objective.loss(),
        lambda objective: objective.value(),
        lambda objective: objective.evaluate(),
        lambda objective: objective.hessian_product(trainable(objective.model)),
        lambda objective: objective.hessian_product(trainable(objective.model), "forward-over-reverse"),
        lambda objective: gauss_newton(objective, trainable(objective.model)),
        lambda objective: objective.over(cut(*samples(), [SAMPLES])).loss(),
        lambda objective: objective.plain().loss(),
        gradient_statistics,
    ]
    for evaluate in evaluations:
        objective = objective_of(loss_fn, name=name)
        before = trace_of(objective.model)
        for _ in range(2):  # the second evaluation is refused, too
            with pytest.raises(
                ValueError, match=r"not a mean over samples.*(check_mean = False|leave these)|expected a scalar"
            ):
                evaluate(objective)
        assert_no_trace(objective.model, before)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss_fn", [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1), nn.MultiMarginLoss()])
def test_means_are_accepted_and_testing_them_changes_no_bit(loss_fn: LossFunction, name: str) -> None:
    class Untested:
        check_mean = False

        def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
            return loss_fn(outputs, labels)

    tested, untested = objective_of(loss_fn, name=name), objective_of(Untested(), name=name)
    before = trace_of(tested.model)
    one, other = tested.evaluate(), untested.evaluate()
    assert all(map(torch.equal, [one.loss, *one.gradient], [other.loss, *other.gradient]))
    assert_no_trace(tested.model, before)
    one, other = tested.evaluate(update_buffers=True), untested.evaluate(update_buffers=True)
    assert all(map(torch.equal, tested.model.buffers(), untested.model.buffers()))


@pytest.mark.parametrize("loss_fn", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.KLDivLoss(reduction="batchmean")])
@pytest.mark.parametrize("sizes", PARTITIONS.values(), ids=PARTITIONS.keys())
def test_means_of_regression_are_accepted(loss_fn: LossFunction, sizes: list[int]) -> None:
    objective_of(loss_fn, cut(*regression()[0], sizes)).loss()


@given(scale=st.floats(1e-3, 1e3), dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("autocast", [False, True])
def test_rounding_does_not_refuse_a_mean_nor_accept_a_sum(
    scale: float, dtype: torch.dtype, seed: int, autocast: bool
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, CLASSES)).to(dtype)
    with torch.no_grad():
        model[1].weight.mul_(scale)
    inputs, labels = samples(seed=seed)
    data, arithmetic = [(inputs.to(dtype), labels)], Arithmetic(autocast=autocast)
    FullBatchObjective(model, F.cross_entropy, data, arithmetic=arithmetic).loss()
    FullBatchObjective(model, lambda *a: 1e6 * F.cross_entropy(*a), data, arithmetic=arithmetic).loss()
    FullBatchObjective(model, lambda *a: unreduced(*a).mean().to(dtype), data, arithmetic=arithmetic).loss()
    with pytest.raises(ValueError, match="not a mean"):
        FullBatchObjective(model, lambda *a: unreduced(*a).sum(), data, arithmetic=arithmetic).loss()


def test_the_losses_of_the_package_need_no_test() -> None:
    assert not any(loss_function(name).check_mean for name in LOSSES)


def test_copies_of_a_sample_stay_together_in_the_test() -> None:
    def mean_of_maxima(outputs: Tensor, labels: Tensor) -> Tensor:
        return unreduced(outputs, labels).view(-1, 3).amax(dim=1).mean()

    mean_of_maxima.copies = 3  # type: ignore[attr-defined]
    assert int(objective_of(mean_of_maxima, [samples()]).loss().num_samples) == SAMPLES // 3
    assert int(objective_of(mean_of_maxima, [samples()], sub_batch=4).loss().num_samples) == SAMPLES // 3


def test_a_loss_is_tested_once_for_an_objective_and_its_copies() -> None:
    calls = []

    def loss_fn(outputs: Tensor, labels: Tensor) -> Tensor:
        calls.append(len(labels))
        return F.cross_entropy(outputs, labels)

    objective = objective_of(loss_fn, [])
    for _ in range(3):
        objective.over([samples()]).loss()
        objective.plain().over([samples()]).loss()
    assert calls == [SAMPLES, SAMPLES, SAMPLES // 2, SAMPLES - SAMPLES // 2, *[SAMPLES] * 6]


# the data

REFUSED: list[Callable[[], Iterable[Any]]] = [
    lambda: (block for block in [samples()]),
    lambda: map(tuple, [samples()]),
    lambda: iter(loader()),
    lambda: loader(shuffle=True),
    lambda: loader(sampler=RandomSampler(range(SAMPLES))),
    lambda: loader(sampler=DistributedSampler(range(SAMPLES), 1, 0)),  # type: ignore[arg-type]
    lambda: loader(sampler=torch.utils.data.SubsetRandomSampler(range(5))),
    lambda: [],
    lambda: [samples(), (torch.zeros(0, 2, 4, 4).double(), torch.zeros(0).long())],
]


@pytest.mark.parametrize("data", REFUSED[:7])
def test_data_that_differ_between_iterations_are_refused_at_construction(data: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"iterated repeatedly|shuffles"):
        objective_of(F.cross_entropy, data())
    with pytest.raises(ValueError, match=r"iterated repeatedly|shuffles"):
        objective_of(F.cross_entropy, []).over(data())


@pytest.mark.parametrize("data", REFUSED[7:])
def test_data_without_samples_are_refused_in_every_evaluation(data: Callable[[], Any]) -> None:
    objective = objective_of(F.cross_entropy, data())
    v = trainable(objective.model)
    for _ in range(2):
        for evaluate in (objective.loss, objective.value, objective.evaluate, partial(objective.hessian_product, v)):
            with pytest.raises(ValueError, match=r"no samples|no blocks"):
                evaluate()
    assert int(objective.over([samples()]).loss().num_samples) == SAMPLES


@pytest.mark.parametrize("data", REFUSED)
def test_every_measurement_refuses_such_data_and_a_landscape_stores_nothing(
    data: Callable[[], Any], tmp_path: Path
) -> None:
    model, axis = build("tanh"), Axis(-1.0, 1.0, 3)
    measurements: list[Callable[[Any], Any]] = [
        lambda data: sharpness(model, F.cross_entropy, data),
        lambda data: sharpness(model, F.cross_entropy, data, matrix="gauss-newton"),
        lambda data: gradient_statistics(FullBatchObjective(model, F.cross_entropy, data)),
        lambda data: sample_gradient_norms(FullBatchObjective(model, F.cross_entropy, data)),
        lambda data: m_sharpness(FullBatchObjective(model, F.cross_entropy, data), rho=0.1),
        lambda data: flatness(FullBatchObjective(model, F.cross_entropy, data), [trainable(model)]),
        lambda data: loss_landscape(model, F.cross_entropy, data, x=axis),
        lambda data: loss_landscape(model, F.cross_entropy, data, x=axis, folder=tmp_path / "surface"),
    ]
    for measure in measurements:
        blocks, before = data(), trace_of(model)
        with pytest.raises(ValueError, match=r"data: .*(iterated|shuffles|no samples|no blocks)"):
            measure(blocks)
        assert_no_trace(model, before)
    surface = loss_landscape(model, F.cross_entropy, [samples()], x=axis, folder=tmp_path / "surface")
    assert (surface.loss == loss_landscape(model, F.cross_entropy, [samples()], x=axis).loss).all()


def shared(measure: Callable[[FullBatchObjective], Any], *parts: list[Any]) -> list[Any]:
    """Measure in one thread per part of the data, which add their sums up."""
    barrier, contributions = threading.Barrier(len(parts)), [None] * len(parts)

    def process(rank: int, model: nn.Module) -> Any:
        def all_reduce(tensors: Any) -> None:
            contributions[rank] = [tensor.clone() for tensor in tensors]  # type: ignore[call-overload]
            barrier.wait()
            for position, tensor in enumerate(tensors):
                tensor.copy_(sum(contribution[position] for contribution in contributions))  # type: ignore[index]
            barrier.wait()

        objective = FullBatchObjective(model, F.cross_entropy, parts[rank], block_pass=SequentialPass(all_reduce))
        try:
            return measure(objective)
        except ValueError as error:
            return error

    models = [build("batchnorm").eval() for _ in parts]
    with ThreadPoolExecutor(len(parts)) as threads:
        return list(threads.map(process, range(len(parts)), models))


def sampled(objective: FullBatchObjective) -> list[Tensor]:
    v = [torch.ones_like(p) for p in trainable(objective.model)]
    statistics = gradient_statistics(objective)
    numbers = [m_sharpness(objective, 0.1), statistics.total_spread, statistics.num_samples, statistics.num_blocks]
    tensors = [objective.loss().loss, *objective.evaluate().gradient, *objective.hessian_product(v)]
    return [*tensors, *gauss_newton(objective, v), *statistics.mean, torch.tensor(numbers, dtype=torch.float64)]


def recalibrated(objective: FullBatchObjective) -> list[Tensor]:
    with recalibrated_batchnorm(objective.model, objective.data, objective.reduce):
        return [buffer.clone() for buffer in objective.model.buffers() if buffer.is_floating_point()]


@pytest.mark.parametrize("measure", [sampled, recalibrated])
def test_a_process_without_blocks_contributes_nothing(measure: Callable[[FullBatchObjective], list[Tensor]]) -> None:
    blocks = cut(*samples(), [20, 13])
    expected, _ = shared(measure, blocks, [])
    whole = shared(measure, blocks)[0]
    for first, second, third in (shared(measure, blocks[:1], [], blocks[1:]), shared(measure, [], blocks, [])):
        for result in (first, second, third):
            torch.testing.assert_close(result, whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(expected, whole, rtol=1e-12, atol=1e-14)


MEASURES: list[Callable[[FullBatchObjective], Any]] = [
    lambda objective: objective.loss(),
    lambda objective: objective.evaluate(),
    lambda objective: objective.hessian_product(trainable(objective.model)),
    lambda objective: gauss_newton(objective, trainable(objective.model)),
    gradient_statistics,
    lambda objective: m_sharpness(objective, 0.1),
    recalibrated,
]


@pytest.mark.parametrize("measure", MEASURES)
def test_no_process_with_samples_is_an_error_in_all_of_them(measure: Callable[[FullBatchObjective], Any]) -> None:
    assert [str(error) for error in shared(measure, [], [])] == [NO_SAMPLES] * 2


def ignoring_late(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, ignore_index=2)


@pytest.mark.parametrize(
    ("loss_fn", "ignored"),
    [
        (nn.CrossEntropyLoss(), -100),
        (F.cross_entropy, -100),
        (partial(F.cross_entropy, ignore_index=2), 2),
        (ignoring_late, 2),
        (lambda outputs, labels: F.cross_entropy(outputs, labels, weight=torch.tensor([1.0, 1.0, 3.0]).to(outputs)), 2),
    ],
)
@pytest.mark.parametrize("sizes", [[11, 11, 11], [1] * SAMPLES, [16, 17]])
def test_labels_that_count_otherwise_and_come_late_are_noticed(
    loss_fn: LossFunction, ignored: int, sizes: list[int]
) -> None:
    inputs, _ = samples()
    labels = torch.arange(SAMPLES) % 2
    labels[-sizes[-1] :][::2] = ignored
    blocks = cut(inputs, labels, sizes)
    for measure in MEASURES[:5]:
        with pytest.raises(ValueError, match=r"not a mean|NaN for finite"):
            measure(objective_of(loss_fn, blocks))
    objective_of(loss_fn, blocks[:1]).loss()  # without these labels, the loss is a mean


WRONG_BLOCKS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "counts": (lambda x, y: [(x, y[:-1])], r"^data: block 0 .* inputs \[33, 2, 4, 4\] and labels \[32\]"),
    "rows": (lambda x, y: (x, y[:-1]), r"^data: inputs \[33, 2, 4, 4\] and labels \[32\]"),
    "list": (
        lambda x, y: [x, y],
        r"^data: block 0 .* is Tensor .*; expected a pair .*a tuple \(inputs, labels",
    ),
    "triple": (lambda x, y: [(x, y, y)], r"^data: block 0 .* is tuple of \(Tensor.*expected a pair"),
    "mapping": (lambda x, y: [{"x": x}], r"^data: block 0 .* is dict; expected a pair"),
    "scalar": (lambda x, y: [(x, y[0])], r"^data: block 0 .* labels \[\]; expected one row"),
    "tensor": (lambda x, y: x, r"^data: Tensor \[33, 2, 4, 4\]; expected a tuple \(inputs, labels\)"),
    "name": (lambda x, y: "CIFAR10", r"^data: str; expected a tuple"),
    "dictionary": (lambda x, y: {"x": x, "y": y}, r"^data: dict; expected a tuple"),
    "none": (lambda x, y: None, r"^data: NoneType; expected a tuple"),
    "mixed": (lambda x, y: (x, y.tolist()), r"^data: tuple of \(Tensor .*, list\); expected a tuple"),
    "lists": (lambda x, y: [(x.tolist(), y.tolist())], r"^data: block 0 .*: inputs are list; expected a tensor, or"),
    "objects": (lambda x, y: (x.numpy().astype(object), y), r"inputs are an array of object; expected a tensor, or"),
    "large": (lambda x, y: (x, y.numpy().astype("uint64")), r"labels are an array of uint64; expected a tensor, or"),
    "meta": (lambda x, y: [(x.to("meta"), y)], r"inputs are on the meta device, without values"),
    "range": (
        lambda x, y: [(x, y + 2)],
        r"fail on inputs float64 .* and labels int64 \[33\].*out of bounds",
    ),
    "floats": (lambda x, y: [(x, y.double())], r"cross_entropy fail on inputs .* and labels float64 \[33\] .*Long"),
    "dtype": (
        lambda x, y: [(x.float(), y)],
        r"fail on inputs float32 .* \(torch\.float64 parameters .*\): .*dtype",
    ),
    "shape": (lambda x, y: [(x[:, :1], y)], r"fail on inputs float64 \[33, 1, 4, 4\] .*shapes cannot be multiplied"),
    "samples": (lambda x, y: DataLoader([(x[0], 0), (x[0, 0], 1)]).dataset, r"^data: block 0 .* labels"),
    "ragged": (
        lambda x, y: DataLoader([(x[0], 0), (x[0, 0], 1)], 2),
        r"^data: the DataLoader cannot make a block",
    ),
    "images": (lambda x, y: DataLoader([(object(), 0)]), r"^data: the DataLoader cannot make a block: .*found <class"),
}


@pytest.mark.parametrize("case", WRONG_BLOCKS)
def test_data_that_do_not_fit_are_named(case: str) -> None:
    make, message = WRONG_BLOCKS[case]
    model = build("tanh")
    before = trace_of(model)
    for measure in (MEASURES[0], MEASURES[1], MEASURES[2]):
        with pytest.raises(ValueError, match=message) as caught:
            measure(FullBatchObjective(model, F.cross_entropy, make(*samples())))
        assert "\n" not in str(caught.value)
    assert_no_trace(model, before)


class Returning(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layers, self.change = build("tanh"), change

    def forward(self, inputs: Tensor) -> Any:
        return self.change(self.layers(inputs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Returning(lambda z: (z, z)), r"^model: returns tuple; expected a tensor"),
        (
            lambda: Returning(lambda z: z.mean(0, keepdim=True)),
            r"^model: outputs \[1, 3\] for|batch_size",
        ),
        (lambda: Returning(lambda z: z[:, :2]), r"labels int64 \[20\].*out of bounds"),
        (lambda: build("tanh").requires_grad_(False), r"^model: no parameter requires a gradient|does not require"),
        (lambda: build("tanh").to("meta"), r"^model: on the meta device, without values; expected a torch\.nn\.Module"),
        (lambda: samples, r"^model: function; expected a torch\.nn\.Module"),
    ],
)
def test_models_that_do_not_fit_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FullBatchObjective(make(), F.cross_entropy, cut(*samples(), [20, 13])).evaluate()


@pytest.mark.parametrize("sub_batch", [0, -1, 2.5, True, "8"])
def test_a_sub_batch_is_a_positive_integer(sub_batch: Any) -> None:
    with pytest.raises(ValueError, match="expected a positive integer, or None"):
        objective_of(F.cross_entropy, sub_batch=sub_batch)
    with pytest.raises(ValueError, match="expected a positive integer, or None"):
        objective_of(F.cross_entropy).plain(sub_batch)


def test_later_errors_of_a_model_are_its_own() -> None:
    model = Returning(lambda z: z)
    objective = FullBatchObjective(model, F.cross_entropy, cut(*samples(), [20, 13]))
    objective.loss()
    model.change = lambda z: z.view(7)
    with pytest.raises(RuntimeError, match="invalid for input of size") as caught:
        objective.loss()
    assert caught.type is RuntimeError


@pytest.mark.parametrize(
    "data",
    [
        loader,
        lambda: loader(sampler=[3, 1, 2]),
        lambda: loader(sampler=DistributedSampler(range(SAMPLES), 2, 1, shuffle=False)),  # type: ignore[arg-type]
        lambda: loader(batch_size=1, batch_sampler=[[0, 1], [5]]),
        lambda: DataLoader(cut(*samples(), [20, 13]), batch_size=None),  # type: ignore[arg-type]
    ],
)
def test_iterating_a_loader_leaves_the_global_generator_alone(data: Callable[[], Any], tmp_path: Path) -> None:
    objective = objective_of(F.cross_entropy, data(), name="batchnorm", gradient_average="moving")
    before = trace_of(objective.model)
    objective.evaluate()
    list(objective.sub_batches())
    gradient_statistics(objective)
    loss_landscape(objective.model, F.cross_entropy, objective.data, x=Axis(0.0, 1.0, 2), folder=tmp_path)
    assert_no_trace(objective.model, before)


def test_random_numbers_of_the_data_and_of_their_consumer_are_two_streams() -> None:
    class Noisy(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return torch.randn(2, 4, 4, dtype=torch.float64), torch.tensor(index % CLASSES)

    objective = objective_of(F.cross_entropy, DataLoader(Noisy()))
    torch.manual_seed(3)
    expected = [inputs for inputs, _ in objective.data]
    torch.manual_seed(3)
    drawn, blocks = [], []
    for block in objective.sub_batches():
        drawn.append(torch.rand(()))
        blocks.append(block.inputs)
    assert all(map(torch.equal, blocks, expected))  # type: ignore[arg-type]
    torch.manual_seed(3)
    assert torch.equal(torch.stack(drawn), torch.stack([torch.rand(()) for _ in range(4)]))


def test_a_loss_that_draws_random_numbers_is_not_tested() -> None:
    objective = objective_of(lambda outputs, labels: F.cross_entropy(F.dropout(outputs, 0.5), labels))
    assert torch.equal(objective.loss().loss, objective.loss().loss)


def test_the_buffers_of_a_loss_stay_as_they_are() -> None:
    class Counting(nn.CrossEntropyLoss):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(outputs, labels)

    loss_fn = Counting()
    objective_of(loss_fn).loss()
    assert loss_fn.calls == 2  # the blocks


def test_a_deep_copy_of_an_objective_is_checked_on_its_own() -> None:
    objective = objective_of(F.cross_entropy)
    copied = copy.deepcopy(objective)
    objective.loss()
    with pytest.raises(ValueError, match="not a mean"):
        copy.deepcopy(objective_of(squared_sum)).loss()
    assert torch.equal(copied.loss().loss, objective.loss().loss)


def test_a_sub_batch_too_small_for_batch_norm_is_named() -> None:
    model, data = nn.BatchNorm1d(2), [(torch.randn(n, 2), torch.randn(n, 2)) for n in (4, 1)]
    objective = FullBatchObjective(model, nn.MSELoss(), data)
    with pytest.raises(ValueError, match="a sub-batch of size 1 is too small for batch normalization"):
        objective.evaluate()
    assert FullBatchObjective(model.eval(), nn.MSELoss(), data).loss().num_samples == 5
