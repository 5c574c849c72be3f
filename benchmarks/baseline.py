"""The plain loop that speed is measured against, in a process of its own.

The average gradient as research code usually computes it: float32 and NCHW, a DataLoader of PIL workers, a block after
the other, Python over the parameters. The process keeps the defaults of PyTorch and of the C library, whatever the
parent has set: it computes when it is told to, and says when it is through. It ends when the parent does.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fullbatch import build_model
from fullbatch.runtime.allocator import keep_freed_memory

MEAN, STD = 0.5, 0.25  # of each channel
PIXELS, CLASSES = 32, 10
ALPHA, EPS, RATE = 0.5, 1e-2, 0.1  # of the regularizer, and the learning rate
GO, DONE, PATIENCE = "go\n", "done\n", 10.0


def random_images(samples: int) -> tuple[Tensor, Tensor]:
    """Return uint8 [samples, 3, 32, 32] and labels, the same in every process."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (samples, 3, PIXELS, PIXELS), dtype=np.uint8)
    return torch.from_numpy(images), torch.from_numpy(generator.integers(0, CLASSES, samples))


class Images(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets give them: an array, PIL, transforms."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._arrays, self._labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        cropped = [v2.RandomCrop(PIXELS, 4), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        normalized = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([MEAN] * 3, [STD] * 3)]
        self._transform = v2.Compose([*cropped, *normalized])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._arrays[index])), self._labels[index]


def pil_loader(samples: int, batch_size: int, workers: int) -> DataLoader[tuple[Tensor, int]]:
    """Return random images, augmented and normalized one by one in ``workers`` processes."""
    data = Images(*random_images(samples))
    return DataLoader(data, batch_size, num_workers=workers, persistent_workers=workers > 0)


def research_loop(model: nn.Module, loader: DataLoader[tuple[Tensor, int]], *, regularized: bool = False) -> None:
    """Compute the average gradient; ``regularized``: by forward differences, as GradRegularizer defines them."""
    parameters = list(model.parameters())
    device = parameters[0].device
    average = [torch.zeros_like(parameter) for parameter in parameters]
    for inputs, labels in loader:
        images, targets = inputs.to(device), labels.to(device)
        loss = F.cross_entropy(model(images), targets)
        gradients = torch.autograd.grad(loss, parameters)
        if regularized:
            gradients = _regularized(model, images, targets, gradients)
        for number, gradient in enumerate(gradients):
            average[number] += gradient / len(loader)
        loss.item()


def _regularized(model: nn.Module, inputs: Tensor, labels: Tensor, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    norm = torch.stack([(ALPHA * gradient).norm() for gradient in gradients]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.add_(EPS / norm * ALPHA * gradient)
    moved = torch.autograd.grad(F.cross_entropy(model(inputs), labels), parameters)
    with torch.no_grad():
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    pairs = zip(gradients, moved, strict=True)
    return tuple(gradient + RATE / 4 * norm / EPS * (other - gradient) for gradient, other in pairs)


@dataclass(frozen=True)
class Loop:
    """What the process is to do; ``keep_memory``: with the allocator's setting that our own runs have."""

    model: str
    batch_size: int
    samples: int
    device: str
    threads: int
    workers: int
    regularized: bool = False
    keep_memory: bool = False


class PlainLoop:
    """A process that goes once through the plain loop at each call; leaving the context ends it.

    Raises ``RuntimeError`` from a call when the process has ended before its time.
    """

    def __init__(self, loop: Loop) -> None:
        command = [sys.executable, __file__, json.dumps(asdict(loop))]
        # a session of its own: an interrupt from the keyboard is for the parent, which then closes the pipe
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout

    def __enter__(self) -> "PlainLoop":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(BrokenPipeError):
            self._orders.close()
        if kind is not None:
            self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def __call__(self) -> None:
        """Let the process compute, and wait until it, and its device, are through."""
        with suppress(BrokenPipeError):
            self._orders.write(GO)
            self._orders.flush()
        if self._answers.readline() != DONE:
            raise RuntimeError(f"the process of the plain loop has ended with status {self._process.wait(PATIENCE)}")


def _orders() -> Iterator[None]:
    """Yield at each order of the parent; its end, however it comes, closes the pipe and so ends this process."""
    while sys.stdin.readline() == GO:
        yield
        with suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), DONE.encode())


def main() -> None:
    """Be the process."""
    loop = Loop(**json.loads(sys.argv[1]))
    if loop.keep_memory:
        keep_freed_memory()
    torch.set_num_threads(loop.threads)
    torch.manual_seed(0)
    device = torch.device(loop.device)
    model = build_model(loop.model, channels=3, classes=CLASSES, pixels=PIXELS).to(device)
    loader = pil_loader(loop.samples, loop.batch_size, loop.workers)
    for _ in _orders():
        research_loop(model, loader, regularized=loop.regularized)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)


if __name__ == "__main__":
    main()
