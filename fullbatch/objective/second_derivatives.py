"""Second derivatives: the context of evaluations that are differentiated twice, and operations that cannot be."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fullbatch.objective.uncompiled import uncompiled
from fullbatch.typing import Tensors

_UNSUPPORTED = (
    r"derivative for '?(?:aten::)?(\w+)'? is not implemented",
    r"Trying to use forward AD with (?:aten::)?(\w+) that does not support it",
    r"(custom autograd\.Function) to use it with forward mode AD",
    r"Double backwards is not supported for (CuDNN RNNs)",
)
"""Messages of PyTorch that name an operation without a second derivative."""


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Evaluate inside, forward pass included, what is differentiated twice.

    Attention runs as matrix products, since its fused kernels have no second derivatives, and compiled models run
    uncompiled. First derivatives outside of the context are not affected.

    Raises:
        ValueError: an operation has no second derivative in PyTorch; names it and the alternatives.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415 (as the compiler, where it is used)

    with uncompiled(), sdpa_kernel(SDPBackend.MATH):
        try:
            yield
        except RuntimeError as error:  # NotImplementedError is one
            operation = next((match[1] for text in _UNSUPPORTED if (match := re.search(text, str(error)))), None)
            if operation is None:
                raise
            message = _no_product(f"{operation} has no second derivative in PyTorch")
            if "forward AD" in str(error) or "forward mode" in str(error):
                message = _no_product(f"{operation} has no forward-mode derivative in PyTorch", "autograd, ")
            elif "scaled_dot_product" in operation:
                message += ", gradients computed inside torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
            raise ValueError(message) from error


def require_right_second_derivatives(model: nn.Module) -> None:
    """Raise ``ValueError`` for a layer whose gradients PyTorch differentiates as if norms were constant."""
    for name, module in model.named_modules():
        hooks = list(module._forward_pre_hooks.values())
        if isinstance(module, _WeightNorm) or any(isinstance(hook, WeightNorm) for hook in hooks):
            raise ValueError(_no_product(f"the second derivatives of weight_norm ({name}) are wrong in PyTorch"))
        has_spectral_norm = isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks)
        if has_spectral_norm and module.training:
            reason = f"the norm in spectral_norm ({name}) counts as constant in training mode"
            raise ValueError(_no_product(reason, "evaluation mode, "))


def require_differentiable(model: nn.Module, gradient: Tensors) -> None:
    """Raise ``ValueError`` where the graph of ``gradient`` contains a custom function marked ``once_differentiable``.

    ``torch.autograd.grad`` ignores these without an error. The graph is examined once for each model.
    """
    if model not in _EXAMINED:
        if _ends_in_errors(gradient, set(model.parameters())):
            raise ValueError(_no_product("the backward pass of a custom autograd.Function is once_differentiable"))
        _EXAMINED.add(model)


_EXAMINED: "WeakSet[nn.Module]" = WeakSet()


def _ends_in_errors(gradient: Tensors, parameters: set[nn.Parameter]) -> bool:
    """Return whether the graph has a node that would raise an error but leads to no parameter, so is never reached."""
    pending, visited = [g.grad_fn for g in gradient if g.grad_fn is not None], set()
    while pending:
        node = pending.pop()
        following = [after for after, _ in node.next_functions if after is not None]
        leaves = [getattr(after, "variable", None) for after in following]
        if node.name() == "torch::autograd::Error" and all(x is not None and x not in parameters for x in leaves):
            return True
        visited.add(node)
        pending += [after for after in following if after not in visited]
    return False


def _no_product(reason: str, others: str = "") -> str:
    return f"{reason}, so there is no exact H v; accepted: {others}forward-differences, central-differences"
