"""Slow, obviously right versions of what the package computes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

LossFunction = Callable[[Tensor, Tensor], Tensor]


def loss_and_gradient(model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One autograd over everything at once."""
    loss = loss_fn(model(inputs), labels)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    return loss.detach(), vector(gradient)


def vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def dense_hessian(model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
    """The Hessian with respect to all parameters as one matrix, row by row; ``seed`` fixes the dropout masks."""
    parameters = list(model.parameters())
    buffers = [buffer.clone() for buffer in model.buffers()]
    torch.manual_seed(seed)
    loss = loss_fn(model(inputs), labels)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [
        vector(torch.autograd.grad(slope, parameters, retain_graph=True, allow_unused=True, materialize_grads=True))
        for slope in gradient
    ]
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    return torch.stack(rows)


def trace_of(model: nn.Module) -> list[Tensor]:
    """Everything that an evaluation must leave alone, copied."""
    on_cuda = any(p.is_cuda for p in model.parameters())
    return [
        *(p.detach().clone() for p in model.parameters()),
        *(b.clone() for b in model.buffers()),
        torch.get_rng_state(),
        *([torch.cuda.get_rng_state()] if on_cuda else []),
    ]


def assert_no_trace(model: nn.Module, before: list[Tensor]) -> None:
    for old, new in zip(before, trace_of(model), strict=True):
        assert torch.equal(old, new)
