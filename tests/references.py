"""Slow, obviously right versions of what the package computes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

LossFunction = Callable[[Tensor, Tensor], Tensor]


def loss_and_gradient(model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One autograd over everything at once."""
    loss = loss_fn(model(inputs), labels)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    return loss.detach(), vector(gradient)


def vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def dense_hessian(model: nn.Module, loss_fn: LossFunction, inputs: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
    """The Hessian with respect to all parameters as one matrix; ``seed`` fixes the dropout masks."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    shapes = [parameter.shape for parameter in parameters]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def loss(flat: Tensor) -> Tensor:
        torch.manual_seed(seed)
        pieces = flat.split([shape.numel() for shape in shapes])
        values = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        scratch = {name: buffer.clone() for name, buffer in buffers.items()}
        return loss_fn(functional_call(model, values | scratch, (inputs,)), labels)

    return torch.autograd.functional.hessian(loss, vector(parameters))


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
