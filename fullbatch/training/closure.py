"""The closure of one update: what the optimizer may ask, and what the step's row is told."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.objective.evaluations import Evaluation
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.optim.closure import Point, parameters_of
from fullbatch.optim.weight_decay import decay_penalty, with_decay
from fullbatch.randomness import seeded
from fullbatch.tensors import clones, device_of, global_norm, trainable
from fullbatch.transforms.chain import GradientTransform, Statistics, chain


class StepClosure:
    """Implements ``fullbatch.optim.closure.Closure``.

    1. The first evaluation moves batch-norm statistics and describes itself in ``report``; no later one does either.
    2. Every evaluation transforms the gradient with the same noise.
    3. Evaluations are counted: ``num_gradients`` (the regularizer's included) and ``num_losses``.

    Args:
        objective: on the blocks of this update.
        optimizer: gives weight decay and the order of parameters.
        transforms: of the gradient.
        noise_seed: seeds them.
        known: what an evaluation at the present parameters has found before; takes the place of the first one.
    """

    def __init__(
        self,
        objective: FullBatchObjective,
        optimizer: Optimizer,
        transforms: Sequence[GradientTransform],
        noise_seed: int,
        known: Evaluation | None = None,
    ) -> None:
        self.objective, self.optimizer, self.transforms = objective, optimizer, transforms
        self.noise_seed = noise_seed
        self.report: dict[str, Tensor] = {}
        self.num_gradients = self.num_losses = 0
        self._known, self._last = known, known
        self._versions: list[int] = []

    @property
    def pure(self) -> bool:
        """Whether ``loss`` is forward passes alone."""
        return not self.objective.regularized

    def __call__(self) -> Tensor:
        """Set the transformed gradients of the parameters and return the full loss."""
        evaluation, self._last = self._evaluation(), None  # whose gradient is transformed in place
        return self._transformed(evaluation, evaluation.gradient)

    def evaluate(self) -> Point:
        """Set the transformed gradients; return the full loss and its own gradient."""
        evaluation = self._evaluation()
        places = dict(zip(self._parameters, evaluation.gradient, strict=True))
        plain = with_decay(self.optimizer, [places[parameter] for parameter in parameters_of(self.optimizer)])
        return Point(self._transformed(evaluation, clones(evaluation.gradient)), plain)

    def loss(self) -> Tensor:
        """Return the full loss."""
        found = self.objective.value()
        self.num_gradients += found.evaluations
        self.num_losses += found.evaluations == 0
        return found.loss + found.penalty + decay_penalty(self.optimizer)

    @property
    def last_here(self) -> Evaluation | None:
        """What the last gradient evaluation found, if the parameters have not moved since."""
        return self._last if self._versions == [p._version for p in self._parameters] else None

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return trainable(self.objective.model)

    @torch.enable_grad()
    def _evaluation(self) -> Evaluation:
        evaluation, self._known = self._known, None
        if evaluation is None:
            evaluation = self.objective.evaluate(update_buffers=not self.report)
            self.num_gradients += evaluation.evaluations
        self._last, self._versions = evaluation, [p._version for p in self._parameters]
        return evaluation

    @torch.no_grad()
    def _transformed(self, evaluation: Evaluation, gradients: list[Tensor]) -> Tensor:
        model = self.objective.model
        with seeded(self.noise_seed, device_of(model)):
            statistics = chain(self.transforms, gradients, self._parameters)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        full_loss = evaluation.loss + evaluation.penalty + decay_penalty(self.optimizer)
        self.report = self.report or _describe(evaluation, full_loss, statistics, model)
        return full_loss


def _describe(evaluation: Evaluation, full_loss: Tensor, statistics: Statistics, model: nn.Module) -> dict[str, Tensor]:
    return {
        "train_loss": evaluation.loss,
        "train_acc": evaluation.accuracy,
        "full_loss": full_loss,
        "squared_norms": evaluation.squared_norms,
        **statistics,
        "param_norm": global_norm(trainable(model)).square(),
        "num_clipped": evaluation.num_clipped,
        "num_samples": evaluation.num_samples,
    }
