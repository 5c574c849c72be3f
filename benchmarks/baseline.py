"""The plain loop that speed is compared with, in a separate process.

It computes the average gradient as research code usually does: in float32 and NCHW, with a DataLoader of PIL workers,
block by block, with Python loops over the parameters. The process keeps the defaults of PyTorch and of the C library,
whatever the parent has set. It computes once per command of the parent, answers when it is done, and ends with the
parent.
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
GO, DONE = "go\n", "done\n"
TIMEOUT = 10.0  # seconds that the process has for ending


def random_images(samples: int) -> tuple[Tensor, Tensor]:
    """Return uint8 [samples, 3, 32, 32] and labels, the same in every process."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (samples, 3, PIXELS, PIXELS), dtype=np.uint8)
    return torch.from_numpy(images), torch.from_numpy(generator.integers(0, CLASSES, samples))


class Images(Dataset[tuple[Tensor, int]]):
    """Images as in torchvision's data sets: an array, converted to PIL and transformed one by one."""

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
    """Return a loader of random images, augmented and normalized one by one in ``workers`` processes."""
    data = Images(*random_images(samples))
    return DataLoader(data, batch_size, num_workers=workers, persistent_workers=workers > 0)


def research_loop(model: nn.Module, loader: DataLoader[tuple[Tensor, int]], *, regularized: bool = False) -> None:
    """Compute the average gradient, ``regularized`` by forward differences as in GradRegularizer."""
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
    """The work of the process; ``keep_memory`` applies the allocator setting of our own runs."""

    model: str
    batch_size: int
    samples: int
    device: str
    threads: int
    workers: int
    regularized: bool = False
    keep_memory: bool = False


class PlainLoop:
    """A process that runs the plain loop once per call; leaving the context ends it.

    Raises:
        RuntimeError: from a call, if the process has ended early.
    """

    def __init__(self, loop: Loop) -> None:
        command = [sys.executable, __file__, json.dumps(asdict(loop))]
        # a separate session: Ctrl-C interrupts only the parent, which then closes the pipe
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._commands, self._replies = self._process.stdin, self._process.stdout

    def __enter__(self) -> "PlainLoop":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(BrokenPipeError):
            self._commands.close()
        if kind is not None:
            self._process.terminate()
        try:
            self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._replies.close()

    def __call__(self) -> None:
        """Run the loop once, and wait until the process and its device have finished."""
        with suppress(BrokenPipeError):
            self._commands.write(GO)
            self._commands.flush()
        if self._replies.readline() != DONE:
            raise RuntimeError(f"the process of the plain loop ended with status {self._process.wait(TIMEOUT)}")


def _commands() -> Iterator[None]:
    """Yield once per command of the parent. The end of the parent closes the pipe, which ends the iteration."""
    while sys.stdin.readline() == GO:
        yield
        with suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), DONE.encode())


def main() -> None:
    """Run the process."""
    loop = Loop(**json.loads(sys.argv[1]))
    if loop.keep_memory:
        keep_freed_memory()
    torch.set_num_threads(loop.threads)
    torch.manual_seed(0)
    device = torch.device(loop.device)
    model = build_model(loop.model, channels=3, classes=CLASSES, pixels=PIXELS).to(device)
    loader = pil_loader(loop.samples, loop.batch_size, loop.workers)
    for _ in _commands():
        research_loop(model, loader, regularized=loop.regularized)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)


if __name__ == "__main__":
    main()
