"""Limits of the device that bound the speed of training."""

import statistics
from collections.abc import Callable

import torch
from bench import Bench
from rich.console import Console
from timing import seconds
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.runtime.device import has_fast_bfloat16
from fullbatch.runtime.peak import matmul_peak

TURNS = 3


def low_dtypes(device: torch.device) -> list[torch.dtype]:
    """Return the dtypes of lower precision than float32 that the device has instructions for."""
    return [torch.bfloat16] if has_fast_bfloat16(device) else []


def limits(bench: Bench, console: Console) -> None:
    """Print the rates of matrix products and copies."""
    device = bench.device
    for dtype in (torch.float32, *low_dtypes(device)):
        bench.facts[f"matrix products in {str(dtype)[6:]}, TFLOP/s"] = matmul_peak(device, dtype) / 1e12
    source = torch.ones(64 << 20, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(TURNS)]
    bytes_moved = 2 * source.numel() * source.element_size()
    bench.facts["copy bandwidth, GB/s"] = bytes_moved / statistics.median(times) / 1e9
    for name, rate in bench.facts.items():
        if name.endswith("/s"):
            console.print(f"{name}: {rate:,.3g}" if rate < 100 else f"{name}: {rate:,.0f}", highlight=False)


def layers_alone(
    model: nn.Module, block: tuple[Tensor, Tensor], dtype: torch.dtype, repetitions: int = 1
) -> Callable[[], None]:
    """Return a function that runs all convolutions and linear layers, forward and backward, on their inputs' shapes."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        calls.append((layer, inputs[0].detach().to(dtype), torch.ones_like(outputs, dtype=dtype)))

    layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    with torch.no_grad():
        model(block[0])
    for hook in hooks:
        hook.remove()
    weights = {layer: layer.weight.detach().to(dtype).requires_grad_() for layer in layers}

    def run() -> None:
        for number, (layer, inputs, cotangent) in enumerate(calls * repetitions):
            inputs.requires_grad_(number % len(calls) > 0)  # images need no gradient
            if isinstance(layer, nn.Conv2d):
                outputs = F.conv2d(
                    inputs, weights[layer], None, layer.stride, layer.padding, layer.dilation, layer.groups
                )
            else:
                outputs = F.linear(inputs, weights[layer])
            torch.autograd.backward(outputs, cotangent)
            inputs.grad = weights[layer].grad = None

    return run
