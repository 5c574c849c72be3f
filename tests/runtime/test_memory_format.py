"""channels_last does not change a gradient, not even of convolutions that oneDNN computes incorrectly.

On processors with AVX2 but without AVX-512, such a convolution ends the process.
"""

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
def test_the_gradient_of_strided_pointwise_convolutions_is_correct(channels: int) -> None:
    inputs = torch.randn(6, 3, 18, 18)
    model = order_weights(network(channels), torch.channels_last)
    for _ in range(20):
        gradient = gradient_of(model, inputs.to(memory_format=torch.channels_last))
    expected = gradient_of(network(channels).double(), inputs.double())
    torch.testing.assert_close(gradient, [exact.float() for exact in expected], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns about its own code
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_the_gradient_of_a_compiled_model_is_correct(memory_format: torch.memory_format) -> None:
    inputs = torch.randn(6, 3, 18, 18)
    model = order_weights(network(4), memory_format)
    if not compile_model(model, lambda: gradient_of(model, inputs)):
        pytest.skip("no compiler here")
    for _ in range(20):
        gradient = gradient_of(model, inputs.to(memory_format=memory_format))
    expected = gradient_of(network(4).double(), inputs.double())
    torch.testing.assert_close(gradient, [exact.float() for exact in expected], rtol=1e-4, atol=1e-6)
    torch.compiler.reset()


def test_only_unsafe_convolutions_keep_their_format() -> None:
    few, many = (order_weights(network(channels), torch.channels_last) for channels in (4, 16))
    assert [conv.weight.stride(3) == conv.in_channels for conv in few] == [True, False, True]
    assert [conv.weight.stride(3) == conv.in_channels for conv in many] == [True, True, True]
