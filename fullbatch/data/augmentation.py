"""Augmentation as a pure function of (seed, step, sample id).

The augmented sample does not depend on block size, order, workers or ranks, nor on how often a step is evaluated.
Crops, flips and erasing act on whole batches on the device. Every other torchvision v2 transform is called by name,
image by image, with generators seeded by the same counters.
"""

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from fullbatch.data import batched
from fullbatch.randomness import derive_seed, preserved_rng, random_bits

_STREAM = 0x4175_676D_656E_7400  # separates these draws from all others of the same seed
AUGMENTATION = 2  # the stream of a run's seed
_NEED_LABELS = ("CutMix", "MixUp")

Draw: TypeAlias = Callable[[int], Tensor]
"""Maps a stream number to 63 random bits per image: int64 [n] on the images' device."""
BatchTransform: TypeAlias = Callable[[Tensor, Draw], Tensor]


def augmentation_seed(run_seed: int) -> int:
    """Return the seed of the augmentation in a run with seed ``run_seed``."""
    return derive_seed(run_seed, AUGMENTATION)


class Augmentation:
    """A sequence of torchvision transforms, given as name -> arguments.

    In ``{"RandomCrop": [32, 4], "RandomHorizontalFlip": 0.5}``, a list holds positional arguments and a mapping keyword
    arguments; None is no argument and anything else a single one. ``{"Resize": [32, 32]}``: two integers are height and
    width where the first argument is ``size`` and the second is not ``padding``. Images stay uint8, so ``fill`` and the
    ``value`` of RandomErasing are in the range 0 to 255.

    Args:
        transforms: names (in any case) and arguments, in the order of application.
        seed: of all draws.
        key: the setting that holds ``transforms``, for messages.

    Raises:
        ValueError: a name is unknown or arguments are wrong; the message names ``<key>.<name>``.
    """

    def __init__(self, transforms: Mapping[str, Any], seed: int, key: str = "data.augmentations_train") -> None:
        self.seed = seed
        self._transforms = [
            _Transform(position, f"{key}.{name}", *_build(key, name, arguments))
            for position, (name, arguments) in enumerate(transforms.items())
        ]

    def __call__(self, images: Tensor, ids: Tensor, step: int, copy: int = 0) -> Tensor:
        """Augment ``images`` (uint8 [n, C, H, W]) of the samples ``ids`` (int64 [n], same device) at ``step``.

        Each ``copy`` of a sample has draws of its own; copy 0 has those of the sample without copies. Transforms that
        are not batched copy ``ids`` to the CPU, which waits for the device.

        Raises:
            ValueError: a transform does not fit the images.
        """
        for transform in self._transforms:
            counters = (self.seed, _STREAM, step, transform.position, *((copy,) if copy else ()))
            try:
                images = transform.apply(images, partial(random_bits, ids, *counters))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{transform.key}: {error}") from error
        return images

    def split(self) -> "tuple[Augmentation, Augmentation] | None":
        """Split after the first transform whose results have one size; return None where there is none.

        Applying the two parts in turn equals applying the whole: each transform keeps its draws.
        """
        for end, transform in enumerate(self._transforms, 1):
            if transform.fixes_size:
                parts = Augmentation({}, self.seed), Augmentation({}, self.seed)
                parts[0]._transforms, parts[1]._transforms = self._transforms[:end], self._transforms[end:]
                return parts
        return None


class _Transform(NamedTuple):
    position: int
    key: str
    apply: BatchTransform
    fixes_size: bool


class _RandomCrop:
    def __init__(self, height: int, width: int, padding: Sequence[int], pad: Callable[[Tensor], Tensor]) -> None:
        self.height, self.width, self.padding, self.pad = height, width, list(padding), pad

    @classmethod
    def like(cls, reference: Any) -> "_RandomCrop":
        from torchvision.transforms.v2 import functional  # noqa: PLC0415 (seconds to import)

        height, width = reference.size
        left, right, top, bottom = reference.padding or (0, 0, 0, 0)
        padding = [left, top, right, bottom]
        pad = partial(functional.pad, padding=padding, fill=reference.fill, padding_mode=reference.padding_mode)
        return cls(height, width, padding, pad)

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        height, width = images.shape[-2:]
        if any(self.padding):
            images = _call(self.pad, images)
        rows, columns = images.shape[-2] - self.height + 1, images.shape[-1] - self.width + 1
        if rows < 1 or columns < 1:
            raise ValueError(
                f"images of {height}x{width} pixels, padded by {self.padding} (left, top, right, bottom), are "
                f"smaller than the crop of {self.height}x{self.width}"
            )
        top, left = batched.two_integers(draw(0), rows, columns)
        return batched.crop(images, top, left, self.height, self.width)


class _RandomFlip:
    def __init__(self, p: float, dim: int) -> None:
        self.p, self.dim = p, dim

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        return batched.flip(images, batched.chance(draw(0), self.p), self.dim)


class _RandomErasing:
    def __init__(self, reference: Any) -> None:
        if reference.value is None or not all(v == int(v) and 0 <= v <= 255 for v in reference.value):
            raise ValueError("value must be an integer from 0 to 255 or a list of one per channel")
        self.p, self.scale, self.ratio = reference.p, tuple(reference.scale), tuple(reference.ratio)
        self.value = [int(v) for v in reference.value]
        self._cached: dict[tuple[torch.device, int, int], tuple[Tensor, Tensor | int]] = {}

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        table, value = self._constants(images)
        height, width = table[draw(1).remainder(len(table))].unbind(1)
        top, left = batched.two_integers(draw(2), images.shape[-2] - height + 1, images.shape[-1] - width + 1)
        return batched.erase(images, top, left, height * batched.chance(draw(0), self.p), width, value)

    def _constants(self, images: Tensor) -> tuple[Tensor, Tensor | int]:
        channels, height, width = images.shape[1:]
        if (images.device, height, width) not in self._cached:
            if len(self.value) not in (1, channels):
                raise ValueError(f"value has {len(self.value)} entries, but the images have {channels} channels")
            table = batched.rectangles(height, width, self.scale, self.ratio)
            if len(table) == 0:
                raise ValueError(f"no rectangle of this scale and ratio fits into {height}x{width} pixels")
            value: Tensor | int = self.value[0]
            if len(self.value) > 1:
                value = torch.tensor(self.value, dtype=torch.uint8, device=images.device).view(-1, 1, 1)
            self._cached[images.device, height, width] = table.to(images.device), value
        return self._cached[images.device, height, width]


class _Deterministic:
    """A transform without draws, applied to the whole batch."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        return _call(self.reference, images)


class _ImageByImage:
    """Any v2 transform, called once per image with the global generators seeded by the image's own draw."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        results = []
        with preserved_rng(images.device):
            for image, seed in zip(images, draw(0).tolist(), strict=True):
                torch.manual_seed(seed)
                result = _call(self.reference, image)
                if not isinstance(result, Tensor) or result.dtype != torch.uint8 or result.dim() != 3:
                    kind = (
                        f"{result.dtype} {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
                    )
                    raise ValueError(f"returns {kind}; images must stay torch.uint8 [C, H, W], see data.normalize")
                results.append(result)
        if len({result.shape for result in results}) > 1:
            raise ValueError("returns images of different sizes; add a crop or use a transform with a fixed size")
        return torch.stack(results)


def _call(transform: Callable[[Tensor], Any], images: Tensor) -> Any:
    """Return ``transform(images)``; an error means that the images do not fit, unless the device failed.

    With arguments that torchvision does not check when it makes a transform, anything can be raised here.
    """
    try:
        return transform(images)
    except (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError):
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, RuntimeError | ValueError | TypeError) else repr(error)
        arguments = "" if isinstance(transform, partial) else f" (arguments: {_parameters(type(transform))})"
        raise ValueError(f"{reason}{arguments}") from error


_BATCHED: Mapping[str, Callable[[Any], BatchTransform]] = {
    "RandomCrop": _RandomCrop.like,
    "RandomHorizontalFlip": lambda reference: _RandomFlip(reference.p, dim=-1),
    "RandomVerticalFlip": lambda reference: _RandomFlip(reference.p, dim=-2),
    "RandomErasing": _RandomErasing,
    "CenterCrop": _Deterministic,
    "Pad": _Deterministic,
}


def _build(key: str, name: str, arguments: Any) -> tuple[BatchTransform, bool]:
    """Return the transform, and whether its results have one size."""
    match name.lower(), arguments:  # the usual crop and flip need no torchvision, whose import takes seconds
        case "randomcrop", [int(size), int(padding)] if size > 0 and padding >= 0:
            return _RandomCrop(size, size, [padding] * 4, partial(nn.functional.pad, pad=[padding] * 4)), True
        case "randomhorizontalflip", float(p) if 0 <= p <= 1:
            return _RandomFlip(p, dim=-1), False
    transform = _find(key, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torchvision only warns of a reversed range
            reference = _construct(transform, arguments)
            batched_form = None if getattr(reference, "pad_if_needed", False) else _BATCHED.get(transform.__name__)
            return (batched_form or _ImageByImage)(reference), _fixes_size(reference)
    except Exception as error:  # torchvision's checks raise many kinds
        accepted = _parameters(transform)
        raise ValueError(f"{key}.{name}: wrong arguments {arguments!r} ({error}); accepted: {accepted}") from error


def _parameters(transform: type) -> str:
    return ", ".join(inspect.signature(transform).parameters) or "no arguments"


def _fixes_size(reference: Any) -> bool:
    name, size = type(reference).__name__, getattr(reference, "size", None)
    return name in ("CenterCrop", "RandomCrop", "RandomResizedCrop") or (
        name == "Resize" and size is not None and len(size) == 2  # one number is the shorter side alone
    )


def _find(key: str, name: str) -> type:
    from torchvision.transforms import v2  # noqa: PLC0415 (seconds to import)

    transforms = {
        name.lower(): transform
        for name, transform in vars(v2).items()
        if isinstance(transform, type) and issubclass(transform, v2.Transform) and transform is not v2.Transform
    }
    if name.lower() not in transforms:
        matches = difflib.get_close_matches(name.lower(), transforms, n=3, cutoff=0.5)
        names = [transforms[match].__name__ for match in matches] or sorted(_BATCHED)
        raise ValueError(f"{key}.{name}: not a torchvision v2 transform; similar names: {', '.join(names)}")
    transform = transforms[name.lower()]
    if transform.__name__ in _NEED_LABELS:
        raise ValueError(f"{key}.{name}: mixes labels; only transforms of single images are supported")
    return transform


def _construct(transform: type, arguments: Any) -> Any:
    """Return ``transform`` with ``arguments``; the names of torchvision's enumerations become their members."""
    from torchvision.transforms import v2  # noqa: PLC0415

    positional: Sequence[Any] = ()
    keywords: Mapping[str, Any] = {}
    if isinstance(arguments, Mapping):
        keywords = arguments
    elif isinstance(arguments, Sequence) and not isinstance(arguments, str):
        first, second = [*inspect.signature(transform).parameters, "", ""][:2]
        is_size = first == "size" and second != "padding" and [*map(type, arguments)] == [int, int]
        positional = (arguments,) if is_size else arguments
    elif arguments is not None:
        positional = (arguments,)
    bound = inspect.signature(transform).bind(*positional, **keywords).arguments
    for name, kind in (("interpolation", v2.InterpolationMode), ("policy", v2.AutoAugmentPolicy)):
        if isinstance(bound.get(name), str):
            bound[name] = kind(bound[name].lower())
    return transform(**bound)
