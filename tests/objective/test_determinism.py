"""Two evaluations agree, or the one who is to blame is named."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from cases import MODELS, SAMPLES, build, cut, samples
from references import assert_no_trace, trace_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fullbatch import determinism_culprit
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer

OWN = torch.Generator().manual_seed(0)
BLOCKS = cut(*samples(), [20, 13])


def culprit(model: nn.Module, data: Any = BLOCKS, loss_fn: Any = F.cross_entropy, **options: Any) -> str | None:
    objective = FullBatchObjective(model, loss_fn, data, sub_batch=10, **options)
    before = trace_of(model)
    result = determinism_culprit(objective)
    assert_no_trace(model, before)
    return result


@pytest.mark.parametrize("name", MODELS)
def test_seeded_dropout_and_batch_norm_are_innocent(name: str) -> None:
    assert culprit(build(name)) is None


def test_a_loader_is_innocent_until_it_shuffles() -> None:
    pairs = TensorDataset(*samples())

    class Hidden:
        """An objective refuses a loader that shuffles, unless it does not see it."""

        def __init__(self, **options: Any) -> None:
            self.options = options

        def __iter__(self) -> Iterator[Any]:
            return iter(DataLoader(pairs, 8, **self.options))

    def culprit_of(**options: Any) -> str | None:
        with pytest.raises(ValueError, match="shuffles") if options else nullcontext():
            assert culprit(build("tanh"), DataLoader(pairs, 8, **options)) is None
        return culprit(build("tanh"), Hidden(**options))

    assert culprit_of() is None
    assert culprit_of(shuffle=True) == "the data: the same samples in another order (shuffled in every iteration)"
    dropped = culprit_of(shuffle=True, drop_last=True)
    assert dropped is not None
    assert dropped.startswith("the data: other samples, from number 0 on (augmented in every iteration, or a tail")


class Growing:
    """One more block in every iteration."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.count += 1
        return iter(BLOCKS[: self.count])


class Augmenting:
    """Noise on the last samples."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, labels = samples()
        inputs[30:] += torch.randn(3, 2, 4, 4, generator=OWN, dtype=torch.float64)
        return iter(cut(inputs, labels, [20, 13]))


def test_data_that_change_are_named() -> None:
    assert culprit(build("tanh"), Growing()) == f"the data: 20 samples, then {SAMPLES}"
    named = culprit(build("tanh"), Augmenting())
    assert named is not None
    assert named.startswith("the data: other samples, from number 30 on")


class Noisy(nn.Module):
    """Draws from a generator that nobody seeds."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=OWN, dtype=x.dtype)


class Inline(nn.Sequential):
    """Noise between its modules."""

    def forward(self, x: Tensor) -> Tensor:
        x = self[2](self[1](self[0](x)))
        return self[3](x + torch.randn(x.shape, generator=OWN, dtype=x.dtype))


def noisy_module() -> nn.Module:
    model = build("tanh")
    model[2] = nn.Sequential(nn.Tanh(), Noisy())
    return model


def noisy_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels) * (1 + torch.rand((), generator=OWN))


class Ragged(torch.autograd.Function):
    """The identity, with a gradient that is never the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (1 + 1e-12 * torch.rand((), generator=OWN, dtype=torch.float64))


class RaggedModule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Ragged.apply(x)


def ragged() -> nn.Module:
    model = build("tanh")
    model[2] = nn.Sequential(nn.Tanh(), RaggedModule())
    return model


@pytest.mark.parametrize(
    ("build_model", "options", "expected"),
    [
        (noisy_module, {}, "the model: 2.1 (Noisy) returns other outputs for the same inputs"),
        (lambda: Inline(*build("tanh")), {}, "the model: random numbers or state outside its modules, before 3"),
        (lambda: build("tanh"), {"loss_fn": noisy_loss}, "the model: the loss function returns other outputs"),
        (ragged, {}, "the gradient of 1.bias: kernels that sum in no fixed order"),
    ],
    ids=["module", "inline", "loss", "gradient"],
)
def test_the_culprit_is_named(build_model: Callable[[], nn.Module], options: dict[str, Any], expected: str) -> None:
    named = culprit(build_model(), **options)
    assert named is not None
    assert named.startswith(expected)


def test_a_regularizer_is_a_suspect() -> None:
    model = ragged()
    regularizer = GradRegularizer(model, torch.optim.SGD(model.parameters(), 0.1), F.cross_entropy)
    named = culprit(model, regularizer=regularizer)
    assert named is not None
    assert "kernels or the regularizer" in named
