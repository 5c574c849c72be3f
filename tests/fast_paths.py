"""The ways to compute a gradient fast, each with the rounding of its dtype, and their inputs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from cases import CLASSES, MODELS, SAMPLES
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.data.augmentation import Augmentation
from fullbatch.data.images import ImageSet, TensorImages
from fullbatch.data.loader import BlockFormat, BlockLoader, LoaderBlocks, ReadOptions
from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.runtime.compilation import compile_model
from fullbatch.runtime.device import tf32
from fullbatch.runtime.memory_format import order_weights

ROUNDINGS = 6
"""Those that a gradient passes through, were all of them one way: images, two layers forth and back, the loss."""


@dataclass(frozen=True)
class FastPath:
    """``eps`` is the distance from 1 to the next number, where factors of products are rounded most."""

    name: str
    eps: float = torch.finfo(torch.float32).eps
    device: str = "cpu"
    memory_format: torch.memory_format = torch.contiguous_format
    mixed_precision: bool | torch.dtype = False
    loss_scale: float = 1.0
    tf32: bool = False
    compiled: bool = False

    @property
    def tolerance(self) -> float:
        """The relative error of a gradient, in the norm of all its entries."""
        return ROUNDINGS * self.eps

    @property
    def perturbation(self) -> float:
        """A length of finite differences at which rounding, of the order of eps/length, is small: eps^(3/4)."""
        return self.eps**0.25

    def model(self, name: str, *, dropout: bool = True) -> nn.Module:
        """Return a model of the table in training mode, as the path runs it; masks depend on dtype and device."""
        torch.manual_seed(0)
        model = order_weights(MODELS[name]().to(self.device, torch.float32), self.memory_format)
        return model if dropout else without_dropout(model)

    def blocks(self, batch_size: int = SAMPLES, dtype: torch.dtype = torch.float32) -> LoaderBlocks:
        """Return images that lie on the device as bytes and are augmented there in batches."""
        return loader(batch_size, torch.device(self.device), dtype, self.memory_format).blocks(step=3)

    def objective(self, model: nn.Module, batch_size: int = SAMPLES, **options: Any) -> FullBatchObjective:
        """Return the objective on the images, compiled where the path is."""
        arithmetic = Arithmetic(autocast=self.mixed_precision, loss_scale=self.loss_scale)
        objective = FullBatchObjective(
            model, F.cross_entropy, self.blocks(batch_size), **{"arithmetic": arithmetic, **options}
        )
        if self.compiled and not compile_model(model, objective.evaluate):
            pytest.skip("no compiler here")
        return objective

    def regularizer(self, model: nn.Module, implementation: str, eps: float | None = None) -> GradRegularizer:
        """Return a regularizer with eta/4 alpha = 1, so that it adds H g."""
        return GradRegularizer(
            model,
            torch.optim.SGD(model.parameters(), lr=4.0),
            F.cross_entropy,
            block_strength=1.0,
            eps=eps or self.perturbation,
            implementation=implementation,
            mixed_precision=self.mixed_precision,
            loss_scale=self.loss_scale,
        )

    @contextmanager
    def flags(self) -> Iterator[None]:
        """Inside, the global switches are the path's."""
        with tf32(self.tf32):
            yield


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def loader(
    batch_size: int, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format
) -> BlockLoader:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (SAMPLES, 2, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    return BlockLoader(
        ImageSet(TensorImages(images), labels, tuple("abc")),
        batch_size=batch_size,
        format=BlockFormat([0.4, 0.5], [0.2, 0.3], device, dtype, memory_format),
        augmentation=Augmentation({"RandomCrop": [4, 1], "RandomHorizontalFlip": 0.5}, seed=2),
        reading=ReadOptions(caching="device"),
    )


def exact_model(name: str) -> nn.Module:
    """Return the model of the table with the same numbers in float64."""
    return FastPath("float64").model(name, dropout=False).double()


def exact_samples() -> tuple[Tensor, Tensor]:
    """Return all the images as one block in float64."""
    ((inputs, labels, _),) = loader(SAMPLES, torch.device("cpu"), torch.float64, torch.contiguous_format).blocks(3)
    return inputs, labels


BFLOAT16, TF32 = torch.finfo(torch.bfloat16).eps, 2.0**-10
FLOAT32_WAYS = {"float32": {}, "channels_last": {"memory_format": torch.channels_last}}
BFLOAT16_WAYS = {
    f"bfloat16 {name}": {"eps": BFLOAT16, "mixed_precision": True, **options} for name, options in FLOAT32_WAYS.items()
}
FLOAT16 = {"eps": torch.finfo(torch.float16).eps, "mixed_precision": torch.float16, "loss_scale": 2.0**10}
PRECISE = [FastPath(name, **options) for name, options in FLOAT32_WAYS.items()]
EAGER = [
    *PRECISE,
    *(FastPath(name, **options) for name, options in BFLOAT16_WAYS.items()),
    FastPath("float16", **FLOAT16),
]
TF32_ON_CUDA = FastPath("tf32", eps=TF32, tf32=True)
COMPILED = [
    FastPath("compiled", compiled=True),
    FastPath("compiled bfloat16", compiled=True, **BFLOAT16_WAYS["bfloat16 channels_last"]),
]


def parameters(paths: Sequence[FastPath]) -> list[Any]:
    """Return the paths for ``pytest.mark.parametrize``: on the CPU, and all the same on CUDA."""
    on_cuda = [replace(path, device="cuda") for path in paths]
    if EAGER[-1] in paths:
        on_cuda.append(replace(TF32_ON_CUDA, device="cuda"))
    return [pytest.param(path, id=f"{path.device} {path.name}", marks=_marks(path)) for path in [*paths, *on_cuda]]


def _marks(path: FastPath) -> list[pytest.MarkDecorator]:
    marks = []
    if path.device == "cuda":
        marks += [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    if path.mixed_precision == torch.float16:
        marks.append(pytest.mark.slow)  # CPUs have no products of it
    if path.compiled:
        marks += [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # those of the compiler, about itself
    return marks
