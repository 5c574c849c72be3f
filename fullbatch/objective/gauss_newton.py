"""Products with the Gauss-Newton matrix of the loss of one sub-batch."""

import torch
from torch import Tensor

from fullbatch.objective.hessian_products import SubBatchLoss
from fullbatch.objective.second_derivatives import require_differentiable, twice_differentiable
from fullbatch.tensors import products, trainable
from fullbatch.typing import Tensors


def gauss_newton_product(point: SubBatchLoss, v: Tensors) -> list[Tensor]:
    """Return J' H_z J v, J the Jacobian of the outputs z and H_z the Hessian of the loss with respect to z.

    The Hessian is this matrix plus the curvature of the outputs, weighted with the derivatives of the loss. For losses
    convex in z (cross-entropy, squared distance) the matrix is positive semidefinite (Schraudolph, 2002). J v is
    computed by two backward passes. The loss must call the model once.
    """
    outputs: list[Tensor] = []

    def forward(inputs: Tensor) -> Tensor:
        outputs.append(point.model(inputs))
        return outputs[-1]

    with twice_differentiable(), torch.enable_grad():
        loss = point.loss(forward) * point.loss_scale
        (z,), parameters = outputs, trainable(point.model)
        (slope,) = torch.autograd.grad(loss, z, create_graph=True)
        weights = torch.zeros_like(z, requires_grad=True)
        pulled = torch.autograd.grad(
            z, parameters, weights, create_graph=True, allow_unused=True, materialize_grads=True
        )
        require_differentiable(point.model, pulled)
        (along,) = torch.autograd.grad(
            pulled, weights, [x.detach().to(p.dtype) for x, p in zip(v, pulled, strict=True)]
        )
        (curved,) = torch.autograd.grad(slope, z, along, retain_graph=True, allow_unused=True, materialize_grads=True)
        product = torch.autograd.grad(z, parameters, curved, allow_unused=True, materialize_grads=True)
    return products([p.detach() for p in product], 1 / point.loss_scale)
