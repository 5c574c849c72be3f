"""A step against textbook descent; full batch and stochastic are one code path."""

import math

import pytest
import torch
from cases import SAMPLES, build, cut, samples
from fixed_blocks import SIZES, fixed_step
from references import loss_and_gradient, vector
from small_training import loader, trainer
from torch import Tensor
from torch.nn import functional as F

from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.losses import loss_function
from fullbatch.training.state import Row
from fullbatch.training.step import DivergedError, Sampling


def take(model: torch.nn.Module, *, stochastic: bool, blocks_per_update: int = 1, lr: float = 0.3) -> Row:
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=0.01)
    step = fixed_step(model, optimizer, sampling=Sampling(blocks_per_update=blocks_per_update))
    return step(0, stochastic=stochastic)


class Textbook:
    """Momentum and weight decay from their formulas: d = g + w t, m <- 0.9 m + d (from the first d), t <- t - lr m."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.momentum = model, torch.zeros(())

    def update(self, blocks: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        inputs, labels = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        loss, gradient = loss_and_gradient(self.model, F.cross_entropy, inputs, labels)
        self.momentum = 0.9 * self.momentum + gradient + 0.01 * vector(list(self.model.parameters()))
        torch.nn.utils.vector_to_parameters(
            vector(list(self.model.parameters())) - 0.3 * self.momentum, self.model.parameters()
        )
        return loss, gradient


@pytest.mark.parametrize(("stochastic", "size"), [(False, 5), (True, 1), (True, 2), (True, 3), (True, 5)])
def test_updates_are_textbook_descent(stochastic: bool, size: int) -> None:
    ours, plain = build("convolutional"), build("convolutional")
    row = take(ours, stochastic=stochastic, blocks_per_update=size if stochastic else 1)
    textbook, blocks = Textbook(plain), cut(*samples(), SIZES)
    norm = float(vector(list(plain.parameters())).square().sum())
    updates = [blocks[start : start + size] for start in range(0, 5, size)]
    pairs = [textbook.update(update) for update in updates]
    torch.testing.assert_close(
        vector(list(ours.parameters())), vector(list(plain.parameters())), rtol=1e-10, atol=1e-12
    )
    weights = [sum(len(labels) for _, labels in update) / SAMPLES for update in updates]
    assert row["train_loss"] == pytest.approx(sum(w * float(loss) for w, (loss, _) in zip(weights, pairs, strict=True)))
    expected = sum(w * float(g.norm()) for w, (_, g) in zip(weights, pairs, strict=True))
    assert row["full_grad_norm"] == row["update_norm"] == pytest.approx(expected)
    assert row["param_norm"] == pytest.approx(norm)
    assert row["evaluations"] == 1


def test_a_row_holds_what_its_columns_promise() -> None:
    model = build("tanh")
    start = vector(list(model.parameters()))
    blocks = cut(*samples(), SIZES)
    pairs = [loss_and_gradient(model, F.cross_entropy, *block) for block in blocks]
    correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in blocks)
    row = take(model, stochastic=False)
    squares = sum(len(y) / SAMPLES * float(g.square().sum()) for (_, y), (_, g) in zip(blocks, pairs, strict=True))
    assert row["grad_norm"] == pytest.approx(math.sqrt(squares))
    assert row["train_acc"] == pytest.approx(correct / SAMPLES)
    assert row["full_loss"] == pytest.approx(row["train_loss"] + 0.01 / 2 * float(start.square().sum()))


def test_one_row_a_step_however_often_the_closure_runs() -> None:
    class Thrice(torch.optim.SGD):
        def step(self, closure):  # type: ignore[no-untyped-def, override]
            losses = [closure() for _ in range(3)]
            assert losses[0] == losses[1] == losses[2]
            return super().step()

    once, thrice = trainer(), trainer()
    thrice.state.optimizer.__class__ = Thrice
    for some_trainer in (once, thrice):
        some_trainer.state.model.train()
    plain, repeated = (t.step(0, stochastic=False) for t in (once, thrice))
    assert repeated.pop("evaluations") == 3 * plain.pop("evaluations") == 6  # the regularizer makes it two each
    assert repeated == plain
    for ours, theirs in zip(
        once.state.model.state_dict().values(), thrice.state.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_noise_differs_between_the_updates_and_repeats_with_the_step() -> None:
    def noise_of(step_number: int, start: int) -> Tensor:
        recorded = []

        class Record:
            def __call__(self, gradients: list[Tensor], parameters: list[Tensor]) -> None:
                recorded.append(torch.randn(4))

        model = build("tanh")
        step = fixed_step(model, torch.optim.SGD(model.parameters(), 0.1), transforms=[Record()])
        step(step_number, stochastic=True)
        return recorded[start]

    assert torch.equal(noise_of(1, 2), noise_of(1, 2))
    assert not torch.equal(noise_of(1, 2), noise_of(1, 3))
    assert not torch.equal(noise_of(1, 2), noise_of(2, 2))


@pytest.mark.parametrize("lr", [1e400, float("nan")])
def test_a_step_that_is_not_finite_is_refused(lr: float) -> None:
    with pytest.raises(DivergedError, match="step 1 is not finite: parameter norm after the update"):
        take(build("tanh"), stochastic=False, lr=lr)


def test_an_infinite_loss_is_refused() -> None:
    model = build("tanh")
    with torch.no_grad():
        model[1].weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="training loss nan, gradient norm nan"):
        take(model, stochastic=False)


def test_with_replacement_only_where_it_is_stochastic() -> None:
    step = trainer().step
    step.sampling = Sampling(with_replacement=True)
    asked = []
    blocks = step.data.blocks

    class Spy:
        def blocks(self, number: int, *, shuffle: bool = False, with_replacement: bool = False):  # type: ignore[no-untyped-def]
            asked.append(with_replacement)
            return blocks(number, shuffle=shuffle, with_replacement=with_replacement)

    step.data = Spy()
    for stochastic in (True, False):
        step(0, stochastic=stochastic)
    assert asked == [True, False]


def test_batch_norm_statistics_move_once_per_step_and_sub_batch() -> None:
    some_trainer = trainer()
    model, step = some_trainer.state.model, some_trainer.step
    model.train()
    step(0, stochastic=False)
    # 50 samples in blocks of 16, 16, 16, 2, each cut into sub-batches of 8: 2 + 2 + 2 + 1
    assert int(model[1].num_batches_tracked) == 7


def test_losses_with_a_maximum_follow_their_gradient() -> None:
    model = build("tanh")
    loss = loss_function("batch-maxup")
    evaluation = FullBatchObjective(model, loss, cut(*samples(), [33])).evaluate()
    expected = loss_and_gradient(model, loss, *samples())[1]
    torch.testing.assert_close(vector(evaluation.gradient), expected)


def test_a_loader_gives_every_sample_once() -> None:
    blocks = loader(augmentation=None).blocks(3, shuffle=True)
    assert sum(blocks.sizes) == 50
    assert len(torch.cat([block.inputs for block in blocks]).flatten(1).unique(dim=0)) == 50
