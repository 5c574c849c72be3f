r"""The gradient regularizer: finite differences (or exact products) in place of the gradient of a gradient norm.

The regularized gradient of a sub-batch b is

    g_b + eta/4 H_b v_b,    v_b = alpha g_b + beta gbar,

which is, up to the dependence of gbar on the parameters, the gradient of l_b + eta/8 alpha ||g_b||^2 +
eta/4 beta <g_b, gbar>: the implicit regularization of SGD made explicit (Smith et al., ICLR 2021; Geiping et al., ICLR
2022). eta is the learning rate, alpha the block strength, beta the accumulated strength, g_b and H_b are gradient and
Hessian of the sub-batch's loss, gbar is the gradient of the whole data set.
"""

import weakref
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.hessian_products import Forward, SubBatchLoss, implementation_named
from fullbatch.randomness import preserved_rng, rng_states, set_rng_states
from fullbatch.tensors import add_, device_of, scaled, scaled_sum, separate
from fullbatch.typing import LossFunction, Tensors

Gradients = TypeVar("Gradients", list[Tensor], tuple[Tensor, ...])


class GradientPenalty:
    """The penalty eta/8 (alpha sum_b n_b/N ||g_b||^2 + beta ||gbar||^2) and its gradient, sub-batch by sub-batch.

    Args:
        optimizer: gives eta, the ``lr`` of its first parameter group at the time of use.
        block_strength: alpha, the strength on the sub-batch's own gradient.
        acc_strength: beta, the strength on the full-batch gradient.
        eps: the length of the finite-difference perturbation, h = eps / ||v||.
        implementation: a name from ``fullbatch.objective.hessian_products.IMPLEMENTATIONS``.

    Raises:
        ValueError: an unknown implementation, or ``complex-step``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        block_strength: float = 0.1,
        acc_strength: float = 0.0,
        eps: float = 1e-2,
        implementation: str = "finite_diff",
    ) -> None:
        self.optimizer = optimizer
        self.block_strength, self.acc_strength, self.eps = block_strength, acc_strength, eps
        self._implementation = implementation_named(implementation)

    @property
    def create_graph(self) -> bool:
        """Whether ``add_gradient_`` needs gradients computed with ``create_graph=True``."""
        return self._implementation.needs_graph

    @property
    def learning_rate(self) -> float:
        """The current eta."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def active(self) -> bool:
        """Whether the penalty is not zero now: eta and one of the strengths are not zero."""
        return self.learning_rate != 0 and (self.block_strength != 0 or self.acc_strength != 0)

    @property
    def extra_evaluations(self) -> int:
        """The gradient evaluations (or computations of the same cost) that ``add_gradient_`` makes now."""
        return self._implementation.evaluations if self.active else 0

    def add_gradient_(self, grads: Gradients, point: SubBatchLoss, mean_gradient: Tensors | None = None) -> Gradients:
        """Add eta/4 H_b v_b to the gradients ``grads`` = g_b of a sub-batch in place, and return them.

        Args:
            grads: tensors with memory of their own. Where they carry a graph, the result is detached.
            point: the sub-batch's loss as a function of the parameters.
            mean_gradient: gbar; needed where ``acc_strength`` is not zero.

        Raises:
            ValueError: ``grads`` carry no graph and the implementation needs one, or ``mean_gradient`` is missing.
        """
        if self.create_graph and not any(grad.requires_grad for grad in grads):
            raise ValueError("this implementation differentiates the gradients: compute them with create_graph=True")
        if self.active and self.acc_strength != 0 and mean_gradient is None:
            raise ValueError("acc_strength needs pre_grads, the gradient of the whole data set")
        if self.active:

            def direction() -> list[Tensor]:
                v = scaled(grads, self.block_strength)
                return v if mean_gradient is None else scaled_sum(v, mean_gradient, self.acc_strength)

            product = self._implementation.product(point, grads, direction, self.eps)
            with torch.no_grad():
                add_(grads, product, alpha=self.learning_rate / 4)
        if any(grad.requires_grad for grad in grads):  # do not keep the graph of the autograd variants alive
            return type(grads)(grad.detach() for grad in grads)
        return grads

    def penalty(self, squared_norms: Tensor, mean_grad_squared_norm: Tensor | float = 0.0) -> Tensor:
        """Return eta/8 (alpha sum_b n_b/N ||g_b||^2 + beta ||gbar||^2), the term added to the loss.

        ``squared_norms`` is the weighted mean of the sub-batches' squared gradient norms.
        """
        penalized = self.block_strength * squared_norms + self.acc_strength * mean_grad_squared_norm
        return self.learning_rate / 8 * penalized


class _RandomStates:
    """The states of the random number generators before the model's last forward pass.

    The hook itself, so that the model keeps this alive and not the regularizer. In copies and files of the model its
    place is taken by ``{}.get``, which as a hook does nothing and needs no import of this package.
    """

    def __init__(self) -> None:
        self.states: tuple[Tensor, ...] = ()

    def __call__(self, module: nn.Module, _: Any) -> None:
        self.states = rng_states(device_of(module))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, ({}, "get")  # get(module, inputs) returns its default, the inputs


class GradRegularizer(GradientPenalty):
    """Adds the gradient regularizer to the gradients of one sub-batch, in a training loop of your own.

    A call changes ``grads`` = g_b to g_b + eta/4 H_b v_b with v_b = alpha g_b + beta gbar, gbar given as ``pre_grads``.
    Every evaluation at other parameters repeats the dropout masks of the model's last forward pass, which must be the
    sub-batch's own, and leaves parameters, buffers and random number generators as they were, bitwise.

    A forward hook on the model records the states of the generators. It is removed by ``close()``, at the end of a
    ``with`` block, and with the regularizer. Given to a ``FullBatchObjective``, the regularizer is evaluated with the
    objective's own loss, arithmetic and dropout masks.

    Args:
        model: the module; gradients are those of its trainable parameters, in order.
        optimizer: gives eta, ``optimizer.param_groups[0]["lr"]`` at call time.
        loss_fn: (outputs, labels) -> mean loss.
        norm: 2, the only norm that is supported.
        block_strength: alpha, the strength on the sub-batch's own gradient.
        acc_strength: beta, the strength on the full-batch gradient, which calls then need as ``pre_grads``.
        eps: the length of the finite-difference perturbation, h = eps / ||v||.
        implementation: a name from ``fullbatch.objective.hessian_products.IMPLEMENTATIONS``.
        mixed_precision: evaluate under autocast; True for the device's default dtype, or a dtype.
        loss_scale: see ``fullbatch.objective.arithmetic.Arithmetic``.

    Raises:
        ValueError: for a norm other than 2, an unknown implementation, or ``complex-step``; in a call, for missing
            ``pre_grads``, for gradients without a graph where the implementation needs one, or after ``close()``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss_fn: LossFunction,
        norm: int = 2,
        block_strength: float = 0.1,
        acc_strength: float = 0.0,
        eps: float = 1e-2,
        implementation: str = "finite_diff",
        mixed_precision: bool | torch.dtype = False,
        loss_scale: float = 1.0,
    ) -> None:
        if norm != 2:
            raise ValueError(f"norm={norm}: the regularizer penalizes the 2-norm only; accepted: 2")
        super().__init__(optimizer, block_strength, acc_strength, eps, implementation)
        self.model, self.loss_fn = model, loss_fn
        self.arithmetic = Arithmetic(autocast=mixed_precision, loss_scale=loss_scale)
        self._random = _RandomStates()
        hook = model.register_forward_pre_hook(self._random)
        self._remove_hook = weakref.finalize(self, hook.remove)

    def close(self) -> None:
        """Remove the forward hook; later calls raise ``ValueError``."""
        self._remove_hook()

    def __enter__(self) -> "GradRegularizer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, grads: Gradients, inputs: Tensor, labels: Tensor, pre_grads: Tensors | None = None) -> Gradients:
        """Regularize ``grads`` of the sub-batch (inputs [B, ...], labels [B]) in place and return them.

        Where they carry a graph, the same memory is returned without it. Where two share memory (autograd does so for
        parameters that are only ever added to each other), the result has a copy for the second.
        """
        if not self._remove_hook.alive:
            raise ValueError("this GradRegularizer is closed")
        grads = type(grads)(separate(grads))
        point = SubBatchLoss(
            self.model, lambda forward: self._loss(forward, inputs, labels), self.arithmetic.loss_scale
        )
        with preserved_rng(device_of(self.model)):
            return self.add_gradient_(grads, point, pre_grads)

    def _loss(self, forward: Forward, inputs: Tensor, labels: Tensor) -> Tensor:
        device = device_of(self.model)
        set_rng_states(self._random.states or rng_states(device), device)
        with self.arithmetic.autocast_on(device):
            return self.loss_fn(forward(inputs), labels)
