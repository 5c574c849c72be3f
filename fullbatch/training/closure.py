"""The closure of one update: evaluates the objective for the optimizer, and reports for the step's row."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.objective.evaluations import Evaluation
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.optim.closure import Point, parameters_of
from fullbatch.optim.eager import EagerOptimizer
from fullbatch.optim.weight_decay import decay_penalty, with_decay
from fullbatch.randomness import seeded
from fullbatch.runtime.imports import describe_error, takes
from fullbatch.tensors import clones, device_of, global_norm, trainable
from fullbatch.transforms.chain import GradientTransform, chain


class StepClosure:
    """Implements ``fullbatch.optim.closure.Closure``.

    1. The first evaluation updates batch-norm statistics and fills ``report``; later ones do neither.
    2. Every evaluation transforms the gradient with the same noise.
    3. Evaluations are counted: ``num_gradients`` (the regularizer's included) and ``num_losses``.

    Args:
        objective: on the blocks of this update.
        optimizer: gives weight decay and the order of parameters.
        transforms: of the gradient.
        noise_seed: seeds them.
        cached: an earlier evaluation at the current parameters; takes the place of the first one.
    """

    def __init__(
        self,
        objective: FullBatchObjective,
        optimizer: Optimizer,
        transforms: Sequence[GradientTransform],
        noise_seed: int,
        cached: Evaluation | None = None,
    ) -> None:
        self.objective, self.optimizer, self.transforms = objective, optimizer, transforms
        self.noise_seed = noise_seed
        self.report: dict[str, Tensor] = {}
        self.num_gradients = self.num_losses = 0
        self._cached, self._last = cached, cached
        self._versions: list[int] = []
        self._evaluating = False

    @property
    def pure(self) -> bool:
        """Whether ``loss`` is forward passes alone."""
        return not self.objective.regularized

    def __call__(self, *, keep_gradient: bool = False) -> Tensor:
        """Set the transformed gradients of the parameters and return the full loss.

        With ``keep_gradient``, ``last_here`` keeps the evaluation with its own gradient; otherwise that is transformed
        in place.
        """
        evaluation, self._cached = self._cached, None
        parameters = trainable(self.objective.model)
        self._evaluating = True
        if evaluation is None:
            with torch.enable_grad():
                evaluation = self.objective.evaluate(update_buffers=not self.report)
            self.num_gradients += evaluation.evaluations
        self._last = evaluation if keep_gradient else None
        self._versions = [parameter._version for parameter in parameters]
        gradients = clones(evaluation.gradient) if keep_gradient else evaluation.gradient
        with torch.no_grad():
            with seeded(self.noise_seed, device_of(self.objective.model)):
                statistics = chain(self.transforms, gradients, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            full_loss = evaluation.loss + evaluation.penalty + decay_penalty(self.optimizer)
            self.report = self.report or _report(evaluation, full_loss, statistics, parameters)
        self._evaluating = False
        return full_loss

    def update(self) -> None:
        """Take a step of the optimizer, of any class.

        One whose ``step`` takes no closure gets the gradients before.

        Raises:
            ValueError: an optimizer of another package fails, or does not call the closure.
        """
        optimizer = self.optimizer
        if isinstance(getattr(optimizer, "base", optimizer), EagerOptimizer):
            optimizer.step(self)  # type: ignore[arg-type]  # a loss may be a tensor
            return
        name = type(getattr(optimizer, "base", optimizer)).__name__
        try:
            if takes(optimizer.step, "closure"):
                optimizer.step(self)  # type: ignore[arg-type]
            else:
                self()
                optimizer.step()
        except Exception as error:
            if self._evaluating:  # an error of the objective
                raise
            raise ValueError(f"hyp.optim: {name}.step failed: {describe_error(error)}") from error
        if not self.report:
            raise ValueError(f"hyp.optim: {name}.step did not call its closure, which computes the gradient")

    def evaluate(self) -> Point:
        """Set the transformed gradients; return the full loss and its own gradient."""
        full_loss = self(keep_gradient=True)
        assert self._last is not None
        gradient_of = dict(zip(trainable(self.objective.model), self._last.gradient, strict=True))
        plain = [gradient_of[parameter] for parameter in parameters_of(self.optimizer)]
        return Point(full_loss, with_decay(self.optimizer, plain))

    def loss(self) -> Tensor:
        """Return the full loss."""
        value = self.objective.value()
        self.num_gradients += value.evaluations
        self.num_losses += value.evaluations == 0
        return value.loss + value.penalty + decay_penalty(self.optimizer)

    @property
    def last_here(self) -> Evaluation | None:
        """The last gradient evaluation that was kept, if the parameters have not changed since."""
        versions = [parameter._version for parameter in trainable(self.objective.model)]
        return self._last if self._versions == versions else None


def _report(
    evaluation: Evaluation, full_loss: Tensor, statistics: dict[str, Tensor], parameters: Sequence[nn.Parameter]
) -> dict[str, Tensor]:
    return {
        "train_loss": evaluation.loss,
        "train_acc": evaluation.accuracy,
        "full_loss": full_loss,
        "squared_norms": evaluation.squared_norms,
        **statistics,
        "param_norm": global_norm(parameters).square(),
        "num_clipped": evaluation.num_clipped,
        "num_samples": evaluation.num_samples,
    }
