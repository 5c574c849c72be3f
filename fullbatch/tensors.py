"""Algebra on lists of tensors, and context managers that restore a module's state.

All uses of ``torch._foreach_*`` are here: one fused call for all parameters instead of a Python loop over them.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from fullbatch.randomness import preserved_rng
from fullbatch.typing import Tensors


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of ``module`` that require a gradient, in the order of ``module.parameters()``."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the module's first parameter or buffer (the CPU when it has none)."""
    for tensor in chain(module.parameters(), module.buffers()):  # called for every block: stops at the first
        return tensor.device
    return torch.device("cpu")


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """Return the dtype of the module's first floating-point parameter; None without one."""
    return next((parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()), None)


def global_norm(tensors: Tensors, order: float = 2.0) -> Tensor:
    """Return the norm of all entries taken as one vector, a scalar tensor; ``order`` is 2 or ``math.inf``."""
    norms = torch.stack(torch._foreach_norm(list(tensors), order))
    return norms.max() if order == math.inf else torch.linalg.vector_norm(norms, order)


def norms(tensors: Tensors) -> list[Tensor]:
    """Return the 2-norm of each tensor as scalar tensors."""
    return list(torch._foreach_norm(list(tensors)))


def dot(left: Tensors, right: Tensors) -> Tensor:
    """Return the inner product of two lists of tensors taken as vectors."""
    products = torch._foreach_mul(list(left), list(right))
    return torch.stack([product.sum() for product in products]).sum()


def zeros_like(tensors: Tensors, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return zeros of the same shapes and devices, in the more precise of ``dtype`` and the tensor's own."""
    return [
        torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, dtype or tensor.dtype)) for tensor in tensors
    ]


@torch.no_grad()
def zero_(tensors: Tensors) -> None:
    """Set all entries to zero in place."""
    if tensors:
        torch._foreach_zero_(list(tensors))


def add_(target: Tensors, source: Tensors, alpha: float = 1.0) -> None:
    """Compute ``target += alpha * source`` in place; the two may differ in dtype."""
    torch._foreach_add_(list(target), list(source), alpha=alpha)


def added(base: Tensors, source: Tensors, alpha: float = 1.0) -> list[Tensor]:
    """Return ``base + alpha * source`` as new tensors, rounded as ``add_`` rounds."""
    return list(torch._foreach_add(list(base), list(source), alpha=alpha))


def scale_(target: Tensors, factor: float | Tensor) -> None:
    """Multiply ``target`` by a number or by a scalar tensor in place."""
    torch._foreach_mul_(list(target), factor)


def scale_each_(target: Tensors, factors: Sequence[Tensor]) -> None:
    """Multiply each tensor by its own factor, of a shape that broadcasts to the tensor's, in place."""
    torch._foreach_mul_(list(target), list(factors))


def add_products_(target: Tensors, left: Tensors, right: Tensors, factor: float = 1.0) -> None:
    """Compute ``target += factor * left * right`` entry by entry, in place."""
    torch._foreach_addcmul_(list(target), list(left), list(right), value=factor)


def lerp_(target: Tensors, source: Tensors, weight: float) -> None:
    """Move ``target`` towards ``source`` in place: target += weight * (source - target)."""
    torch._foreach_lerp_(list(target), list(source), weight)


def copy_(target: Tensors, source: Tensors) -> None:
    """Copy the values of ``source`` into ``target``."""
    if target:
        torch._foreach_copy_(list(target), list(source))


@torch.no_grad()
def clones(tensors: Tensors) -> list[Tensor]:
    """Return detached copies."""
    copies = [torch.empty_like(tensor) for tensor in tensors]
    copy_(copies, tensors)
    return copies


@torch.no_grad()
def scaled(tensors: Tensors, factor: float | Tensor) -> list[Tensor]:
    """Return detached ``factor * tensors``."""
    return list(torch._foreach_mul(list(tensors), factor))


def products(tensors: Tensors, factor: float) -> list[Tensor]:
    """Return ``factor * tensors`` with their graph; for the factor 1 the tensors themselves."""
    return list(tensors) if factor == 1.0 else list(torch._foreach_mul(list(tensors), factor))


@torch.no_grad()
def scaled_sum(base: Tensors, direction: Tensors, factor: float | Tensor) -> list[Tensor]:
    """Return detached ``base + factor * direction`` as new tensors of the dtypes of ``base``."""
    steps = scaled([d.to(b.dtype) for b, d in zip(base, direction, strict=True)], factor)
    return list(torch._foreach_add(list(base), steps))


def separate(tensors: Tensors) -> list[Tensor]:
    """Return tensors that can be changed in place, with copies of those that share memory or are expanded.

    Autograd returns such gradients for parameters that are only added to each other or summed up.
    """
    addresses: set[int] = set()
    separated = []
    for tensor in tensors:
        shared = tensor.data_ptr() in addresses or (not tensor.is_contiguous() and 0 in tensor.stride())
        separated.append(tensor.clone() if shared else tensor)
        addresses.add(tensor.data_ptr())
    return separated


def flatten(tensors: Tensors) -> Tensor:
    """Return all entries as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Tensors) -> list[Tensor]:
    """Cut a vector into views of the shapes of ``like``."""
    pieces = vector.split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]


@contextmanager
def preserved(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Restore the values of ``tensors`` bitwise on exit, also after an exception."""
    saved = clones(tensors)
    try:
        yield
    finally:
        with torch.no_grad():
            copy_(tensors, saved)


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set training or evaluation mode inside the context, and restore each module's own mode on exit."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


@contextmanager
def parameters_at(module: nn.Module, values: Tensors) -> Iterator[None]:
    """Set the trainable parameters of ``module`` to ``values`` inside the context.

    On exit, parameters, buffers and the states of the random number generators are restored bitwise. The cache of a
    surrounding autocast is cleared on entry and exit.
    """
    parameters = trainable(module)
    with ExitStack() as stack:
        stack.callback(torch.clear_autocast_cache)  # it caches by parameter and does not notice new values
        stack.enter_context(preserved(parameters))
        stack.enter_context(preserved(list(module.buffers())))
        stack.enter_context(preserved_rng(device_of(module)))
        with torch.no_grad():
            copy_(parameters, values)
        torch.clear_autocast_cache()
        del values  # frees a copy of the parameters
        yield


def in_places(module: nn.Module, values: Tensors) -> dict[str, Tensor]:
    """Return ``values`` of the trainable parameters by name, for ``functional_call(tie_weights=False)``.

    A parameter of several modules is named in each of them. A module that is registered several times has the first of
    its names only: with all of them ``functional_call`` would not restore its parameters.
    """
    value_of = dict(zip(map(id, trainable(module)), values, strict=True))
    return {
        name: value_of[id(parameter)]
        for prefix, submodule in module.named_modules()
        for name, parameter in submodule.named_parameters(prefix, recurse=False, remove_duplicate=False)
        if id(parameter) in value_of
    }
