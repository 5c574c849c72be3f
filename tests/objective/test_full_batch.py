"""The full-batch objective equals one autograd over all the data, whatever the partition, and leaves no trace."""

import itertools

import pytest
import torch
from cases import (
    MODELS,
    PARTITIONS,
    SAMPLES,
    SHARING,
    WITHOUT_BATCH_STATISTICS,
    build,
    cut,
    samples,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import pairwise
from references import assert_no_trace, dense_hessian, loss_and_gradient, trace_of, vector
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.block_pass import SequentialPass
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.objective.losses import loss_function
from fullbatch.tensors import trainable
from fullbatch.typing import Block


def objective_on(name: str, sizes: list[int], **options: object) -> FullBatchObjective:
    return FullBatchObjective(build(name), F.cross_entropy, cut(*samples(), sizes), **options)


@pytest.mark.parametrize("name", WITHOUT_BATCH_STATISTICS)
@pytest.mark.parametrize("sizes", PARTITIONS.values(), ids=PARTITIONS.keys())
@pytest.mark.parametrize("sub_batch", [None, 1, 3, 128])
def test_equals_one_autograd_over_all_data(name: str, sizes: list[int], sub_batch: int | None) -> None:
    objective = objective_on(name, sizes, sub_batch=sub_batch)
    loss, gradient = loss_and_gradient(objective.model, F.cross_entropy, *samples())
    evaluation = objective.evaluate()
    torch.testing.assert_close(evaluation.loss, loss, rtol=1e-12, atol=0)
    assert (vector(evaluation.gradient) - gradient).norm() <= 1e-10 * gradient.norm()
    assert int(evaluation.num_samples) == SAMPLES
    torch.testing.assert_close(objective.loss().loss, loss, rtol=1e-12, atol=0)


@given(cuts=st.sets(st.integers(1, SAMPLES - 1)), sub_batch=st.integers(1, SAMPLES))
@settings(max_examples=30, deadline=None)
def test_no_partition_matters(cuts: set[int], sub_batch: int) -> None:
    edges = [0, *sorted(cuts), SAMPLES]
    sizes = [end - start for start, end in itertools.pairwise(edges)]
    objective = objective_on("tanh", sizes, sub_batch=sub_batch)
    _, gradient = loss_and_gradient(objective.model, F.cross_entropy, *samples())
    torch.testing.assert_close(vector(objective.evaluate().gradient), gradient, rtol=1e-10, atol=1e-13)


def copied_samples(copies: int) -> tuple[Tensor, Tensor]:
    """Every sample followed by its copies, each copy another image."""
    inputs, labels = samples()
    noise = samples(SAMPLES * copies, seed=2)[0]
    return inputs.repeat_interleave(copies, 0) + noise, labels.repeat_interleave(copies)


def largest_of_each(outputs: Tensor, labels: Tensor, copies: int) -> Tensor:
    losses = F.cross_entropy(outputs, labels, reduction="none")
    return torch.stack([part.max() for part in losses.split(copies)]).mean()


@pytest.mark.parametrize(
    ("name", "partition", "sub_batch"), pairwise([*WITHOUT_BATCH_STATISTICS], [*PARTITIONS], [None, 1, 3])
)
def test_copies_of_a_sample_stay_together(name: str, partition: str, sub_batch: int | None) -> None:
    inputs, labels = copied_samples(4)
    model, loss_fn = build(name), loss_function("maxup-4")
    loss, gradient = loss_and_gradient(model, lambda *a: largest_of_each(*a, 4), inputs, labels)
    blocks = cut(inputs, labels, [4 * size for size in PARTITIONS[partition]])
    objective = FullBatchObjective(model, loss_fn, blocks, sub_batch=sub_batch)
    evaluation = objective.evaluate()
    torch.testing.assert_close(evaluation.loss, loss, rtol=1e-12, atol=0)
    assert (vector(evaluation.gradient) - gradient).norm() <= 1e-10 * gradient.norm()
    assert int(evaluation.num_samples) == SAMPLES
    torch.testing.assert_close(objective.loss().loss, loss, rtol=1e-12, atol=0)
    v = [torch.randn_like(p) for p in model.parameters()]
    whole = FullBatchObjective(model, loss_fn, [(inputs, labels)]).hessian_product(v)
    torch.testing.assert_close(objective.hessian_product(v), whole, rtol=1e-9, atol=1e-12)


def test_sub_batches_count_samples_and_not_copies() -> None:
    inputs, labels = copied_samples(2)
    sizes_of_passes: list[int] = []
    model = build("linear")
    model.register_forward_pre_hook(lambda _, arguments: sizes_of_passes.append(len(arguments[0])))
    objective = FullBatchObjective(model, loss_function("maxup-2"), [(inputs, labels)], sub_batch=10)
    objective.evaluate()
    assert sizes_of_passes == [22, 22, 22]  # 33 samples in 33 // 10 parts
    moving = FullBatchObjective(
        model, loss_function("maxup-2"), [(inputs, labels)], sub_batch=10, gradient_average="moving"
    )
    assert moving.evaluate().gradient[0].isfinite().all()


@pytest.mark.parametrize("sizes", PARTITIONS.values(), ids=PARTITIONS.keys())
def test_weights_after_five_steps_do_not_depend_on_the_partition(sizes: list[int]) -> None:
    ours, plain = build("convolutional"), build("convolutional")
    objective = FullBatchObjective(ours, F.cross_entropy, cut(*samples(), sizes))
    optimizers = [torch.optim.SGD(m.parameters(), 0.3, momentum=0.9, nesterov=True) for m in (ours, plain)]
    for _ in range(5):
        for parameter, gradient in zip(ours.parameters(), objective.evaluate().gradient, strict=True):
            parameter.grad = gradient
        optimizers[1].zero_grad()
        F.cross_entropy(plain(samples()[0]), samples()[1]).backward()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(
        vector(list(ours.parameters())), vector(list(plain.parameters())), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(("block", "sub_batch", "passes"), [(33, 8, [9, 8, 8, 8]), (33, 33, [33]), (33, 20, [33])])
def test_blocks_are_cut_into_nearly_equal_sub_batches(block: int, sub_batch: int, passes: list[int]) -> None:
    objective, sizes_of_passes = objective_on("tanh", [block], sub_batch=sub_batch), []
    objective.model.register_forward_hook(lambda module, inputs, outputs: sizes_of_passes.append(len(outputs)))
    objective.evaluate()
    assert sizes_of_passes == passes


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("implementation", ["autograd", "forward-over-reverse"])
def test_hessian_product_equals_the_dense_hessian(name: str, implementation: str) -> None:
    model = build(name).eval()
    objective = FullBatchObjective(model, F.cross_entropy, cut(*samples(), PARTITIONS["uneven"]))
    v = [torch.randn_like(p) for p in model.parameters()]
    dense = dense_hessian(model, F.cross_entropy, *samples())
    product = vector(objective.hessian_product(v, implementation))
    assert (product - dense @ vector(v)).norm() <= 1e-10 * (dense @ vector(v)).norm()


@pytest.mark.parametrize("name", MODELS)
def test_evaluations_repeat_and_leave_no_trace(name: str) -> None:
    objective = objective_on(name, PARTITIONS["uneven"])
    before = trace_of(objective.model)
    first, second = objective.evaluate(), objective.evaluate()
    objective.loss()
    objective.hessian_product([torch.ones_like(p) for p in objective.model.parameters()], "forward-over-reverse")
    assert_no_trace(objective.model, before)
    assert torch.equal(vector(first.gradient), vector(second.gradient))
    assert torch.equal(objective.loss().loss, first.loss)
    assert all(p.grad is None for p in objective.model.parameters())


@pytest.mark.parametrize("strengths", [{}, {"block_strength": 0.5}, {"block_strength": 0.5, "acc_strength": 0.5}])
def test_batchnorm_buffers_move_once_per_sub_batch_when_asked(strengths: dict[str, float]) -> None:
    model, plain = build("batchnorm"), build("batchnorm")
    regularizer = GradRegularizer(model, torch.optim.SGD(model.parameters(), 0.1), F.cross_entropy, **strengths)
    blocks = cut(*samples(), [20, 13])
    FullBatchObjective(
        model, F.cross_entropy, blocks, sub_batch=10, regularizer=regularizer if strengths else None
    ).evaluate(update_buffers=True)
    for inputs in (*blocks[0][0].split(10), blocks[1][0]):
        plain(inputs)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_dropout_masks_depend_on_the_key_and_the_block() -> None:
    def loss(seed: int) -> float:
        blocks = [Block(*pair, seed + number) for number, pair in enumerate(cut(*samples(), [11, 22]))]
        return float(FullBatchObjective(build("dropout"), F.cross_entropy, blocks).evaluate().loss)

    losses = {loss(seed) for seed in (1, 1, 2)}
    assert len(losses) == 2


def test_moving_average_reproduces_the_first_release() -> None:
    objective = objective_on("tanh", PARTITIONS["sevens"], gradient_average="moving")
    average, count = torch.zeros(()), len(PARTITIONS["sevens"])
    for inputs, labels in objective.data:
        gradient = loss_and_gradient(objective.model, F.cross_entropy, inputs, labels)[1]
        average = average + (gradient - average) / count
    torch.testing.assert_close(vector(objective.evaluate().gradient), average, rtol=1e-12, atol=1e-15)


def test_moving_average_of_equal_gradients_is_0_63_of_them() -> None:
    inputs, labels = samples(4)
    model = build("tanh")
    gradient = loss_and_gradient(model, F.cross_entropy, inputs, labels)[1]
    evaluation = FullBatchObjective(
        model, F.cross_entropy, [(inputs, labels)] * 50, gradient_average="moving"
    ).evaluate()
    torch.testing.assert_close(vector(evaluation.gradient), (1 - 0.98**50) * gradient)


def test_sums_are_kept_in_the_accumulation_dtype() -> None:
    model = build("tanh").to(torch.bfloat16)
    inputs, labels = samples(64)
    blocks = cut(inputs.to(torch.bfloat16), labels, [1] * 64)
    exact = sum(
        vector(torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))).double() / 64
        for x, y in blocks
    )

    def error(dtype: torch.dtype) -> float:
        objective = FullBatchObjective(model, F.cross_entropy, blocks, arithmetic=Arithmetic(accumulation_dtype=dtype))
        return float((vector(objective.evaluate().gradient).double() - exact).norm() / exact.norm())

    assert error(torch.float32) < 3e-3  # the rounding of the result to bfloat16 alone
    assert error(torch.bfloat16) > 3 * error(torch.float32)


def test_two_processes_add_up_to_one() -> None:
    inputs, labels = samples()
    model, shared = build("convolutional"), []

    def first(tensors: list[torch.Tensor]) -> None:
        shared.append([tensor.clone() for tensor in tensors])

    def second(tensors: list[torch.Tensor]) -> None:
        for ours, other in zip(tensors, shared.pop(0), strict=True):
            ours.add_(other)

    FullBatchObjective(
        model, F.cross_entropy, cut(inputs[:20], labels[:20], [7, 13]), block_pass=SequentialPass(first)
    ).evaluate()
    evaluation = FullBatchObjective(
        model, F.cross_entropy, cut(inputs[20:], labels[20:], [13]), block_pass=SequentialPass(second)
    ).evaluate()
    loss, gradient = loss_and_gradient(model, F.cross_entropy, inputs, labels)
    torch.testing.assert_close(evaluation.loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(vector(evaluation.gradient), gradient, rtol=1e-10, atol=1e-13)


def test_unused_and_frozen_parameters() -> None:
    model = build("tanh")
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    model[1].bias.requires_grad_(False)
    evaluation = FullBatchObjective(model, F.cross_entropy, [samples()]).evaluate()
    assert [g.shape for g in evaluation.gradient] == [p.shape for p in trainable(model)]
    assert evaluation.gradient[0].shape == (2,)
    assert not evaluation.gradient[0].any()


@pytest.mark.parametrize("name", ["tanh", *SHARING])
def test_batch_clip_acts_on_each_regularized_sub_batch_gradient(name: str) -> None:
    model, blocks = build(name), cut(*samples(), [20, 13])
    regularizer = GradRegularizer(
        model, torch.optim.SGD(model.parameters(), 0.5), F.cross_entropy, block_strength=0.7, implementation="autograd"
    )
    plain = [
        FullBatchObjective(model, F.cross_entropy, [block], regularizer=regularizer).evaluate().gradient
        for block in blocks
    ]
    norms = [float(vector(g).norm()) for g in plain]
    limit = (norms[0] + norms[1]) / 2
    expected = sum(
        len(block[1]) / SAMPLES * vector(g) * min(1.0, limit / (norm + 1e-6) if norm > limit else 1.0)
        for block, g, norm in zip(blocks, plain, norms, strict=True)
    )
    evaluation = FullBatchObjective(
        model, F.cross_entropy, blocks, regularizer=regularizer, batch_clip=limit
    ).evaluate()
    torch.testing.assert_close(vector(evaluation.gradient), expected, rtol=1e-10, atol=1e-13)
    assert float(evaluation.num_clipped) == pytest.approx(1)


def test_unknown_average_is_refused() -> None:
    with pytest.raises(ValueError, match="gradient_average=median: accepted are exact and moving"):
        objective_on("tanh", [33], gradient_average="median")
