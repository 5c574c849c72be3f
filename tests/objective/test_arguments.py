"""All functions that measure an objective take it, or the model, the loss and data of every kind, with one result."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import SAMPLES, build, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from references import vector
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import fullbatch
from fullbatch.analysis.flatness import flatness, m_sharpness, worst_case
from fullbatch.analysis.gradient_statistics import gradient_curvature, gradient_statistics, sample_gradient_norms
from fullbatch.analysis.sharpness import hessian_trace, sharpness, spectral_density
from fullbatch.landscape.any_module import loss_landscape
from fullbatch.landscape.grid import Axis
from fullbatch.objective.determinism import determinism_culprit
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.objective.losses import loss_function
from fullbatch.tensors import trainable
from fullbatch.training.state import TrainState
from fullbatch.training.step import Sampling, Step
from fullbatch.training.validation import validate
from fullbatch.typing import Block


class Pairs(Dataset[Any]):
    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]


class Iterated:
    """Blocks of another library."""

    def __init__(self, *rows: Tensor) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return zip(*(part.split(13) for part in self.rows), strict=True)


class Loader:
    def __init__(self, *rows: Tensor) -> None:
        self.rows = rows

    def blocks(self, step: int, **_: bool) -> list[Block]:
        return [Block(*rows, step) for rows in zip(*(part.split(13) for part in self.rows), strict=True)]


def numbers(values: Tensor, integers: str = "i8") -> np.ndarray:
    if not values.is_floating_point():
        return values.numpy().astype(integers)
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # type: ignore[no-any-return]


def read_only(values: Tensor, dtype: str = "i2") -> np.ndarray:
    array = numbers(values, integers=dtype)
    array = array.astype(array.dtype.newbyteorder(">"))[::-1]
    array.flags.writeable = False
    return array[::-1]


KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensors": lambda x, y: (x, y),
    "arrays": lambda x, y: (numbers(x), numbers(y, "i2")),
    "views": lambda x, y: (read_only(x), read_only(y)),
    "list": lambda x, y: list(zip(x.split(13), y.split(13), strict=True)),
    "list-of-lists": lambda x, y: [[x[:20], y[:20]], [x[20:], y[20:]]],
    "list-of-arrays": lambda x, y: [(numbers(x[:20]), y[:20].numpy()), (x[20:], y[20:])],
    "tuple": lambda x, y: tuple(zip(x.split(13), y.split(13), strict=True)),
    "two-blocks": lambda x, y: ((x[:20], y[:20]), (x[20:], y[20:])),
    "blocks": lambda x, y: [Block(x, y, 3)],
    "iterable": Iterated,
    "tensor-dataset": TensorDataset,
    "dataset": Pairs,
    "subset": lambda x, y: Subset(Pairs(x, y), range(SAMPLES)),
    "dataloader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=13),
    "loader": Loader,
    "objective": lambda x, y: FullBatchObjective(build("tanh"), F.cross_entropy, (x, y)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sub_batch", [None, 5])
def test_every_kind_of_data_is_the_same_objective(kind: str, sub_batch: int | None) -> None:
    model = build("tanh")
    expected = FullBatchObjective(model, F.cross_entropy, [samples()]).evaluate()
    objective = FullBatchObjective(model, F.cross_entropy, KINDS[kind](*samples()), sub_batch=sub_batch)
    for evaluation in (objective.evaluate(), objective.over(KINDS[kind](*samples())).evaluate()):
        torch.testing.assert_close(evaluation.loss, expected.loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(evaluation.gradient, expected.gradient, rtol=1e-9, atol=1e-13)
        assert int(evaluation.num_samples) == SAMPLES
    v = [torch.ones_like(p) for p in trainable(model)]
    product = FullBatchObjective(model, F.cross_entropy, [samples()]).hessian_product(v)
    torch.testing.assert_close(objective.hessian_product(v), product, rtol=1e-9, atol=1e-12)
    assert sum(1 for _ in objective.sub_batches()) == objective.num_sub_batches()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_is_trained_on_and_validated(kind: str) -> None:
    data = KINDS[kind](*samples())
    models = [build("tanh") for _ in range(2)]
    for model, blocks in zip(models, (data, [samples()]), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), 0.3)
        step = Step(TrainState(model, optimizer), FullBatchObjective(model, F.cross_entropy, []), blocks)
        for number in range(2):
            step(number, stochastic=False)
    torch.testing.assert_close(
        vector(list(models[0].parameters())), vector(list(models[1].parameters())), rtol=1e-9, atol=1e-12
    )
    results = [validate(models[1], F.cross_entropy, some).loss for some in (data, [samples()])]
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)


def test_data_of_a_step_keep_their_dropout_masks_in_every_range() -> None:
    inputs, labels = samples()
    blocks, model = list(zip(inputs.split(11), labels.split(11), strict=True)), build("dropout")
    objective = FullBatchObjective(model, F.cross_entropy, blocks)
    losses = [float(objective.sub_batch_objective.loss(block).loss) for block in objective.sub_batches()]
    step = Step(TrainState(model, torch.optim.SGD(model.parameters(), 0.1)), objective, blocks)
    whole = step.data.blocks(0)
    assert len(whole) == 3
    for start in range(3):
        for stop in range(start + 1, 4):
            part = whole[start:][: stop - start]
            assert len(part) == stop - start
            expected = sum(losses[start:stop]) / (stop - start)
            assert float(objective.over(part).loss().loss) == pytest.approx(expected, rel=1e-12)
    assert len(step.objectives_at(0, stochastic=True)) == 3
    shuffled = Step(step.state, objective, blocks, sampling=Sampling(shuffle=True))
    with pytest.raises(ValueError, match="data: blocks cannot be shuffled nor drawn; use a fullbatch"):
        shuffled(0, stochastic=True)


def directions(model: nn.Module) -> list[Tensor]:
    return [torch.ones_like(p) for p in trainable(model)]


MEASUREMENTS: dict[str, Callable[..., Any]] = {
    "sharpness": lambda *given, **options: sharpness(*given, **options).value,
    "trace": lambda *given, **options: hessian_trace(*given, num_matvecs=9, **options).value,
    "density": lambda *given, **options: float(spectral_density(*given, num_steps=3, **options).nodes.max()),
    "statistics": lambda *given, **options: gradient_statistics(*given, chunks=2, **options).total_spread,
    "samples": lambda *given, **options: max(sample_gradient_norms(*given, **options)),
    "flatness": lambda *given, **options: flatness(*given, [directions(build("tanh"))], max_steps=5, **options).mean,
    "curvature": lambda *given, **options: gradient_curvature(*given, directions(build("tanh")), **options),
    "worst": lambda *given, **options: worst_case(*given, rho=0.1, **options),
    "m-sharpness": lambda *given, **options: m_sharpness(*given, 0.1, **options),
    "landscape": lambda *given, **options: float(loss_landscape(*given, x=Axis(0, 1, 2), **options).loss[1, 0]),
    "culprit": lambda *given, **options: 0.0 if determinism_culprit(*given, **options) is None else 1.0,
}


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_function_takes_an_objective_or_its_parts(name: str) -> None:
    measure, model = MEASUREMENTS[name], build("tanh")
    blocks = [(x, y) for x, y in zip(*(part.split(13) for part in samples()), strict=True)]
    expected = measure(FullBatchObjective(model, F.cross_entropy, blocks, sub_batch=4))
    assert isinstance(expected, float)
    assert measure(model, F.cross_entropy, blocks, sub_batch=4) == expected
    assert measure(FullBatchObjective(model, F.cross_entropy, blocks), sub_batch=4) == expected
    assert (
        measure(objective=FullBatchObjective(model, F.cross_entropy, blocks), sub_batch=4) == expected
        if name not in ("flatness", "curvature", "m-sharpness")
        else True
    )
    for data in ([samples()], samples(), tuple(part.numpy() for part in samples()), TensorDataset(*samples())):
        assert measure(model, F.cross_entropy, data) == measure(model, F.cross_entropy, [samples()])
    with pytest.raises(ValueError, match="expected a FullBatchObjective, or model, loss_fn and data"):
        measure(model)
    with pytest.raises(ValueError, match="mixed_precision: the objective that is given has its own"):
        measure(FullBatchObjective(model, F.cross_entropy, blocks), mixed_precision=True)
    with pytest.raises(ValueError, match=r"data: .*expected a tuple"):
        measure(model, F.cross_entropy, None)


def test_keywords_name_the_parts() -> None:
    model = build("tanh")
    by_name = sharpness(model=model, loss_fn=F.cross_entropy, data=samples(), top_k=2)
    assert by_name.eigenvalues == sharpness(model, F.cross_entropy, data=samples(), top_k=2).eigenvalues
    assert sharpness.__doc__ is not None


def test_a_landscape_of_an_objective_is_that_of_its_parts(tmp_path: Any) -> None:
    model, axis = build("batchnorm"), Axis(-1.0, 1.0, 3)
    regularizer = GradRegularizer(model, torch.optim.SGD(model.parameters(), 0.2), F.cross_entropy, block_strength=0.4)
    objective = FullBatchObjective(model, F.cross_entropy, samples(), sub_batch=16, regularizer=regularizer)
    one = loss_landscape(objective, x=axis, recalibrate=True, folder=tmp_path)
    other = loss_landscape(
        model, F.cross_entropy, samples(), x=axis, recalibrate=True, sub_batch=16, regularizer=regularizer
    )
    assert (one.full_loss == other.full_loss).all()
    stored = loss_landscape(
        model,
        F.cross_entropy,
        [block[:2] for block in objective.sub_batches()],
        x=axis,
        recalibrate=True,
        sub_batch=16,
        regularizer=regularizer,
        folder=tmp_path,
    )
    assert (stored.full_loss == one.full_loss).all()


def test_dir_lists_the_public_names() -> None:
    assert {*dir(fullbatch)} == {*fullbatch.__all__, "__version__"}


# Anything that a user might give: the right number, or one sentence

LOSSES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "function": F.cross_entropy,
    "module": nn.CrossEntropyLoss(label_smoothing=0.1),
    "package": loss_function(),
    "incorrect": loss_function("incorrect-xent"),
    "lambda": lambda z, y: F.cross_entropy(z, y, reduction="none").sum() / len(y),
    "margin": nn.MultiMarginLoss(),
    "squares": lambda z, y: F.mse_loss(z, F.one_hot(y.long(), 3).to(z.dtype)),
    "regression": nn.MSELoss(),
    "vector": lambda z, y: F.cross_entropy(z, y)[None],
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "hidden-sum": lambda z, y: F.cross_entropy(z, y, reduction="sum"),
    "none": lambda z, y: F.cross_entropy(z, y, reduction="none"),
    "weighted": nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])),
    "hidden-weighted": lambda z, y: F.cross_entropy(z, y, weight=torch.tensor([0.2, 1.0, 3.0]).to(z)),
    "ignoring": nn.CrossEntropyLoss(ignore_index=1),
    "hidden-ignoring": lambda z, y: F.cross_entropy(z, y, ignore_index=1),
    "root": lambda z, y: F.mse_loss(z, F.one_hot(y.long(), 3).to(z.dtype)).sqrt(),
    "largest": lambda z, y: F.cross_entropy(z, y, reduction="none").max(),
    "nan": lambda z, y: z.sum() * torch.nan,
    "number": lambda z, y: 1.0,
    "pair": lambda z, y: (F.cross_entropy(z, y), z),
    "nothing": lambda z, y: None,
    "constant": lambda z, y: torch.ones(()),
    "integer": lambda z, y: (z.argmax(1) != y).sum(),
    "no function": 3,  # type: ignore[dict-item]
}
MODELS: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3)),
    "network": lambda: build("tanh"),
    "zeros": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3).apply(lambda m: nn.init.zeros_(m.weight))),
    "frozen": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).requires_grad_(False),
    "narrow": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 2)),
    "pooled": lambda: nn.Sequential(nn.Flatten(0), nn.LazyLinear(3)),
    "meta": lambda: build("tanh").to("meta"),
    "function": lambda: F.relu,
}
DTYPES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
LABELS: dict[str, Callable[[Tensor], Tensor]] = {
    "classes": lambda y: y,
    "small": lambda y: y.to(torch.uint8),
    "int32": lambda y: y.int(),
    "floats": lambda y: y.double(),
    "one-hot": lambda y: F.one_hot(y, 3),
    "probabilities": lambda y: F.one_hot(y, 3).double() * 0.8 + 0.2 / 3,
    "out of range": lambda y: y + 1,
    "negative": lambda y: y - 1,
    "ignored at the end": lambda y: torch.where(torch.arange(len(y)) > len(y) // 2, -100, y),
    "column": lambda y: y[:, None],
}
ARRAYS = ["f2", "f4", ">f4", "f8", "i1", "u2", "u8", "c8", "O", "U8"]


@st.composite
def data_of(draw: st.DrawFn, inputs: Tensor, labels: Tensor) -> Any:
    """Return data of any kind, and the tensors that they stand for; None for what must be refused."""
    kind = draw(
        st.sampled_from([*KINDS, "cut", "arrays of", "shuffled", "generator", "map", "empty", "gap", "ragged", "x"])
    )
    if kind == "arrays of":
        dtype = draw(st.sampled_from(ARRAYS))
        array = inputs.float().numpy().astype(dtype)
        rounded = torch.from_numpy(array.astype("f8")) if array.dtype.kind in "fi" or dtype == "u2" else None
        return (array, labels.numpy()), rounded
    if kind == "cut" and len(labels):
        edges = sorted(draw(st.sets(st.integers(1, max(len(labels) - 1, 1)))))
        sizes = [b - a for a, b in zip([0, *edges], [*edges, len(labels)], strict=True) if b > a]
        return list(zip(inputs.split(sizes), labels.split(sizes), strict=True)), inputs
    blocks = list(zip(inputs.split(5), labels.split(5), strict=True))
    refused: dict[str, Callable[[], Any]] = {
        "shuffled": lambda: DataLoader(TensorDataset(*samples()), batch_size=4, shuffle=True),
        "generator": lambda: (block for block in blocks),
        "map": lambda: map(tuple, blocks),
        "empty": list,
        "gap": lambda: [*blocks, (inputs[:0], labels[:0])],
        "ragged": lambda: [(inputs, labels[:-1])],
        "x": lambda: inputs,
        "cut": list,
    }
    return (refused[kind](), None) if kind in refused else (KINDS[kind](inputs, labels), inputs)


def outcome_of(model: Any, loss_fn: Any, data: Any, sub_batch: Any) -> tuple[Tensor, Tensor] | None:
    """Return loss and gradient; None after one sentence."""
    try:
        objective = FullBatchObjective(model, loss_fn, data, sub_batch=sub_batch)
        first, evaluation = objective.loss().loss, objective.evaluate()
        gradient = vector(evaluation.gradient).double()
    except (ValueError, TypeError) as error:
        if "\n" in str(error) or not str(error):
            raise RuntimeError("more or less than one sentence") from error
        return None
    torch.testing.assert_close(first, evaluation.loss, rtol=0.02, atol=1e-3)
    assert evaluation.loss.isfinite()
    assert gradient.isfinite().all()
    return evaluation.loss.double(), gradient


def check_outcome(
    data: st.DataObject, loss: str, model: str, dtype: torch.dtype, kind_of_labels: str, num: int, sub_batch: Any
) -> None:
    torch.manual_seed(0)
    inputs, labels = samples(33)[0][:num], LABELS[kind_of_labels](samples(33)[1][:num])
    inputs = inputs.to(dtype)
    given, meant = data.draw(data_of(inputs, labels))
    some = MODELS[model]()
    some = some.to(dtype) if isinstance(some, nn.Module) else some
    outcome = outcome_of(some, LOSSES[loss], given, sub_batch)
    if outcome is None:
        sure = loss in ("function", "module", "package", "lambda", "margin") and model in ("linear", "network")
        assert not (
            sure
            and kind_of_labels == "classes"
            and meant is not None
            and meant is inputs
            and num == 33
            and sub_batch in (None, 1, 2, 5, 40)
            and dtype is not torch.float16
        )
        return
    assert meant is not None
    double = some.double()
    exact = meant.to(dtype).double()
    try:
        value = LOSSES[loss](double(exact), labels if labels.is_floating_point() else labels.long())
        gradient = torch.autograd.grad(value, list(double.parameters()))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise AssertionError("accepted what PyTorch refuses") from error
    expected, tolerance = vector(gradient), DTYPES[dtype]
    assert abs(float(outcome[0]) - float(value)) <= tolerance * max(1.0, abs(float(value)))
    assert (outcome[1] - expected).norm() <= tolerance * max(1.0, float(expected.norm()))


def trials(number: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call a test with data, a loss, a model, its dtype, labels, a number of samples, and a sub-batch."""
    names = [st.sampled_from([*table]) for table in (LOSSES, MODELS, DTYPES, LABELS)]
    sizes = [st.sampled_from([0, 1, 2, 9, 33]), st.sampled_from([None, 1, 2, 5, 40, 0, -3, 1.5])]
    drawn = given(data=st.data(), drawn=st.tuples(*names, *sizes))
    return lambda test: settings(max_examples=number, deadline=None)(drawn(test))


@pytest.mark.filterwarnings("ignore")
@trials(60)
def test_the_outcome_is_the_right_number_or_one_sentence(data: st.DataObject, drawn: Any) -> None:
    check_outcome(data, *drawn)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
@trials(3000)
def test_the_outcome_of_many_trials_is_the_right_number_or_one_sentence(data: st.DataObject, drawn: Any) -> None:
    check_outcome(data, *drawn)
