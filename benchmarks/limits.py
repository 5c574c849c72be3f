"""What bounds the speed of training."""

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
    """Return the dtypes below float32 that the device has instructions for."""
    return [torch.bfloat16] if has_fast_bfloat16(device) else []


def limits(bench: Bench, console: Console) -> None:
    """Print the rates of products and copies."""
    device = bench.device
    for dtype in (torch.float32, *low_dtypes(device)):
        bench.facts[f"matrix products in {str(dtype)[6:]}, TFLOP/s"] = matmul_peak(device, dtype) / 1e12
    source = torch.ones(64 << 20, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(TURNS)]
    bytes_moved = 2 * source.numel() * source.element_size()
    bench.facts["copy bandwidth, GB/s"] = bytes_moved / statistics.median(times) / 1e9
    for name, found in bench.facts.items():
        if name.endswith("/s"):
            console.print(f"{name}: {found:,.3g}" if found < 100 else f"{name}: {found:,.0f}", highlight=False)


def layers_alone(
    model: nn.Module, block: tuple[Tensor, Tensor], dtype: torch.dtype, repetitions: int = 1
) -> Callable[[], None]:
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
        for number, (layer, inputs, cotangent) in enumerate(jobs * repetitions):
            inputs.requires_grad_(number % len(jobs) > 0)  # nobody asks for the gradient of the images
            if isinstance(layer, nn.Conv2d):
                outputs = F.conv2d(
                    inputs, weights[layer], None, layer.stride, layer.padding, layer.dilation, layer.groups
                )
            else:
                outputs = F.linear(inputs, weights[layer])
            torch.autograd.backward(outputs, cotangent)
            inputs.grad = weights[layer].grad = None

    return run
