"""channels_last does not change a gradient, not even where oneDNN is wrong: with AVX2 alone it ends the process."""

import pytest
import torch
from torch import Tensor, nn

from fullbatch.runtime.compilation import compile_model
from fullbatch.runtime.memory_format import order_weights


def gradient_of(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(model(inputs).square().mean(), list(model.parameters())))


def network(channels: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 8, 1, stride=2), nn.Conv2d(8, 8, 1))


@pytest.mark.parametrize("channels", [2, 4, 7, 8, 16])
def test_the_gradient_of_strided_pointwise_convolutions_is_right(channels: int) -> None:
    inputs = torch.randn(6, 3, 18, 18)
    model = order_weights(network(channels), torch.channels_last)
    for _ in range(20):
        found = gradient_of(model, inputs.to(memory_format=torch.channels_last))
    expected = gradient_of(network(channels).double(), inputs.double())
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, exact.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler, about itself
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_so_it_is_compiled(memory_format: torch.memory_format) -> None:
    inputs = torch.randn(6, 3, 18, 18)
    model = order_weights(network(4), memory_format)
    if not compile_model(model, lambda: gradient_of(model, inputs)):
        pytest.skip("no compiler here")
    for _ in range(20):
        found = gradient_of(model, inputs.to(memory_format=memory_format))
    expected = gradient_of(network(4).double(), inputs.double())
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, exact.float(), rtol=1e-4, atol=1e-6)
    torch.compiler.reset()


def test_what_is_computed_wrongly_alone_stays_as_it_was() -> None:
    few, many = (order_weights(network(channels), torch.channels_last) for channels in (4, 16))
    assert [conv.weight.stride(3) == conv.in_channels for conv in few] == [True, False, True]
    assert [conv.weight.stride(3) == conv.in_channels for conv in many] == [True, True, True]
