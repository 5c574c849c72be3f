r"""The gradient regularizer: finite differences (or exact products) in place of the gradient of a gradient norm.

The regularized gradient of a sub-batch b is

    g_b + eta/4 H_b v_b,    v_b = alpha g_b + beta gbar,

which is, up to the dependence of gbar on the parameters, the gradient of l_b + eta/8 alpha ||g_b||^2 +
eta/4 beta <g_b, gbar>: the implicit regularization of SGD made explicit (Smith et al., ICLR 2021; Geiping et al., ICLR
2022). eta is the learning rate, alpha the block strength, beta the accumulated strength, g_b and H_b are gradient and
Hessian of the sub-batch's loss, gbar is the gradient of the whole data set.
"""

import contextlib
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.objective.hessian_products import Forward, SubBatchLoss, implementation_named
from fullbatch.randomness import preserved_rng, rng_states, set_rng_states
from fullbatch.tensors import add_, device_of, scaled, scaled_sum, separate
from fullbatch.typing import LossFunction, Tensors

Gradients = TypeVar("Gradients", list[Tensor], tuple[Tensor, ...])


def autocast(device: torch.device, mixed_precision: bool | torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context for the device: off, the device's default low precision, or the dtype given."""
    if mixed_precision is False:
        return contextlib.nullcontext()
    dtype = mixed_precision if isinstance(mixed_precision, torch.dtype) else None
    return torch.autocast(device.type, dtype=dtype)


class _RandomStates:
    """Remembers the states of the random number generators before the model's last forward pass.

    An object of its own, so that a deep copy of the model copies this and not the regularizer.
    """

    def __init__(self) -> None:
        self.states: tuple[Tensor, ...] = ()

    def remember(self, module: nn.Module, _: Any) -> None:
        self.states = rng_states(device_of(module))


class GradRegularizer:
    """Adds the gradient regularizer to the gradients of one sub-batch, in place.

    Steps of a call, with ``grads`` = g_b and ``pre_grads`` = gbar:

    1. v = alpha g_b + beta gbar.
    2. H v by ``implementation``; every evaluation at other parameters repeats the dropout masks of the sub-batch's
       forward pass and leaves parameters, buffers and random number generators as they were, bitwise.
    3. g_b <- g_b + eta/4 H v, with eta read from ``optimizer.param_groups[0]["lr"]`` at call time.

    Args:
        model: the module; gradients are those of its trainable parameters, in order.
        optimizer: gives eta.
        loss_fn: (outputs, labels) -> mean loss.
        norm: 2, the norm that is penalized; there is no other.
        block_strength: alpha, the strength on the sub-batch's own gradient.
        acc_strength: beta, the strength on the full-batch gradient, which calls then need as ``pre_grads``.
        eps: the length of the finite-difference perturbation, h = eps / ||v||.
        implementation: a name from ``fullbatch.objective.hessian_products.IMPLEMENTATIONS``.
        mixed_precision: evaluate under autocast; True for the device's default dtype, or a dtype.
        loss_scale: backward passes are of so many times the loss, see ``FullBatchObjective``.

    Raises:
        ValueError: for a norm other than 2, an unknown implementation, or ``complex-step``; in a call, for missing
            ``pre_grads`` or for gradients without a graph where the implementation needs one.
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
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.block_strength, self.acc_strength, self.eps = block_strength, acc_strength, eps
        self.mixed_precision, self.loss_scale = mixed_precision, loss_scale
        self._implementation = implementation_named(implementation)
        # The last forward pass before a call is the sub-batch's own; a perturbed one starts from the same states.
        self._random = _RandomStates()
        model.register_forward_pre_hook(self._random.remember)

    @property
    def create_graph(self) -> bool:
        """Whether the gradients of a call must be computed with ``create_graph=True``."""
        return self._implementation.needs_graph

    @property
    def learning_rate(self) -> float:
        """The current eta."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def active(self) -> bool:
        """Whether a call changes anything now: eta and one of the strengths are not zero."""
        return self.learning_rate != 0 and (self.block_strength != 0 or self.acc_strength != 0)

    @property
    def extra_evaluations(self) -> int:
        """The gradient evaluations (or their like in cost) that a call makes now."""
        return self._implementation.evaluations if self.active else 0

    def __call__(self, grads: Gradients, inputs: Tensor, labels: Tensor, pre_grads: Tensors | None = None) -> Gradients:
        """Regularize ``grads`` of the sub-batch (inputs [B, ...], labels [B]) in place and return them.

        Where they carry a graph, the same memory is returned without it. Where two are one memory (autograd does so for
        parameters that are only ever added to each other), what is returned has a copy for the second.
        """
        if self.create_graph and not any(grad.requires_grad for grad in grads):
            raise ValueError("this implementation differentiates the gradients: compute them with create_graph=True")
        if self.active and self.acc_strength != 0 and pre_grads is None:
            raise ValueError("acc_strength needs pre_grads, the gradient of the whole data set")
        grads = type(grads)(separate(grads))
        if self.active:
            point = SubBatchLoss(self.model, lambda forward: self._loss(forward, inputs, labels), self.loss_scale)
            with preserved_rng(device_of(self.model)):
                product = self._implementation.product(
                    point, grads, lambda: self._direction(grads, pre_grads), self.eps
                )
            with torch.no_grad():
                add_(grads, product, alpha=self.learning_rate / 4)
        return _without_graph(grads)

    def penalty(self, squared_norms: Tensor, mean_grad_squared_norm: Tensor | float = 0.0) -> Tensor:
        """Return eta/8 (alpha sum_b n_b/N ||g_b||^2 + beta ||gbar||^2), what the regularizer adds to the loss.

        ``squared_norms`` is the weighted mean of the sub-batches' squared gradient norms.
        """
        penalized = self.block_strength * squared_norms + self.acc_strength * mean_grad_squared_norm
        return self.learning_rate / 8 * penalized

    def _direction(self, grads: Tensors, pre_grads: Tensors | None) -> list[Tensor]:
        v = scaled(grads, self.block_strength)
        return v if pre_grads is None else scaled_sum(v, pre_grads, self.acc_strength)

    def _loss(self, forward: Forward, inputs: Tensor, labels: Tensor) -> Tensor:
        device = device_of(self.model)
        set_rng_states(self._random.states or rng_states(device), device)
        with autocast(device, self.mixed_precision):
            return self.loss_fn(forward(inputs), labels)


def _without_graph(grads: Gradients) -> Gradients:
    """Let go of the graph that the autograd variants need, so that kept gradients do not keep it alive."""
    if not any(grad.requires_grad for grad in grads):
        return grads
    return type(grads)(grad.detach() for grad in grads)
