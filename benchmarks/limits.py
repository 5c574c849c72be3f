"""What bounds the speed of training, and what it needs of memory."""

import statistics
from collections.abc import Callable

import torch
from rich.console import Console
from timing import seconds
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch import FullBatchObjective, GradRegularizer
from fullbatch.runtime.device import has_fast_bfloat16
from fullbatch.runtime.live_memory import peak_of
from fullbatch.runtime.peak import matmul_peak
from fullbatch.tensors import device_of

Pair = tuple[Tensor, Tensor]
MIB, TURNS = 1 << 20, 3


def memory(model: nn.Module, block: Pair, title: str, console: Console) -> dict[str, float]:
    """Print the peak of a plain and of a regularized gradient of two blocks."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    facts: dict[str, float] = {}
    for name in ("plain", "forward-differences", "central-differences"):
        regularizer = None
        if name != "plain":
            regularizer = GradRegularizer(model, optimizer, F.cross_entropy, block_strength=0.5, implementation=name)
        objective = FullBatchObjective(model, F.cross_entropy, [block] * 2, regularizer=regularizer)
        facts[f"memory: {title}, {name}"] = peak_of(objective.evaluate, device_of(model)) / MIB
    parameters = sum(p.numel() * p.element_size() for p in model.parameters()) / MIB
    plain = next(iter(facts.values()))
    for name, found in facts.items():
        console.print(f"{name}: {found:,.1f} MiB, plain + {(found - plain) / parameters:.2f} copies of the parameters")
    return facts


def limits(model: nn.Module, block: Pair, title: str, console: Console) -> dict[str, float]:
    """Print rates of products and copies, and the share of them that the network's layers alone reach."""
    device = device_of(model)
    dtypes = [torch.float32, *([torch.bfloat16] if has_fast_bfloat16(device) else [])]
    facts: dict[str, float] = {}
    for dtype in dtypes:
        facts[f"matrix products in {dtype}, TFLOP/s"] = matmul_peak(device, dtype) / 1e12
        time = statistics.median(seconds(layers_alone(model, block, dtype), device) for _ in range(TURNS))
        facts[f"convolutions and products alone in {dtype}: {title}, pictures/s"] = len(block[1]) / time
    source = torch.ones(64 << 20, device=device)
    target = torch.empty_like(source)
    time = min(seconds(lambda: target.copy_(source), device) for _ in range(TURNS))
    facts["copy bandwidth, GB/s"] = 2 * source.numel() * source.element_size() / time / 1e9
    for name, found in facts.items():
        console.print(f"{name}: {found:,.3g}" if found < 100 else f"{name}: {found:,.0f}")
    return facts


def layers_alone(model: nn.Module, block: Pair, dtype: torch.dtype) -> Callable[[], None]:
    """Return what runs all convolutions and linear layers, forward and backward, on inputs of their real shapes."""
    jobs: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        jobs.append((layer, inputs[0].detach().to(dtype), torch.ones_like(outputs, dtype=dtype)))

    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    with torch.no_grad():
        model(block[0])
    for hook in hooks:
        hook.remove()
    weights = {layer: layer.weight.detach().to(dtype).requires_grad_() for layer in layers}

    def run() -> None:
        for number, (layer, inputs, cotangent) in enumerate(jobs):
            inputs.requires_grad_(number > 0)  # nobody asks for the gradient of the pictures
            if isinstance(layer, nn.Conv2d):
                outputs = F.conv2d(
                    inputs, weights[layer], None, layer.stride, layer.padding, layer.dilation, layer.groups
                )
            else:
                outputs = F.linear(inputs, weights[layer])
            torch.autograd.backward(outputs, cotangent)
            inputs.grad = weights[layer].grad = None

    run()
    return run
