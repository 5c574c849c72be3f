"""Models of torchvision, of timm, and of the user."""

import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fullbatch.models.compatibility import check_compatible
from fullbatch.runtime.imports import call_user_code, import_object
from fullbatch.tensors import device_of

log = logging.getLogger(__name__)

_LARGE = 112  # half of the 224 pixels that stems with strides are designed for
_ONE_OUTPUT = {"aux_logits": False, "init_weights": True}  # no auxiliary classifiers, initialization of the paper
_TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {"googlenet": _ONE_OUTPUT, "inception": _ONE_OUTPUT}


def build_torchvision(name: str, *, channels: int, classes: int, pixels: int) -> nn.Module:
    """Build the torchvision classifier ``name`` with fresh weights, for images [B, channels, pixels, pixels].

    Raises:
        ValueError: The name is unknown, or the model does not accept such images.
    """
    from torchvision import models  # noqa: PLC0415 (seconds to import)

    names = models.list_models(module=models)
    if name.lower() not in names:
        raise ValueError(f"name={name}: not a classifier of torchvision; {_similar(name, names)}")
    options = next((given for prefix, given in _TORCHVISION_OPTIONS.items() if name.lower().startswith(prefix)), {})
    if name.lower().startswith("vit"):
        options = {"image_size": pixels}
    elif name.lower().startswith("maxvit"):
        options = {"input_size": (pixels, pixels)}
    with _prefixed_errors(f"name={name}"):
        model: nn.Module = models.get_model(name.lower(), weights=None, num_classes=classes, **options)
    if channels != 3:
        _replace_first_convolution(model, channels)
    _check(f"name={name}", model, channels, classes, pixels)
    _warn_about_large_stem(name, model, pixels)
    return model


def build_timm(name: str, *, channels: int, classes: int, pixels: int) -> nn.Module:
    """Build the timm classifier ``name``, see ``build_torchvision``; needs the extra ``timm``."""
    try:
        import timm  # noqa: PLC0415 (an extra)
    except ImportError:
        raise ValueError("timm is not installed: pip install 'fullbatch[timm]'") from None
    name = name if timm.is_model(name) else name.lower()
    if not timm.is_model(name):
        raise ValueError(f"name={name}: not a classifier of timm; {_similar(name, timm.list_models())}")
    config = timm.models.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": pixels} if getattr(config, "fixed_input_size", False) else {}
    with _prefixed_errors(f"name={name}"):
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **options)
    _check(f"name={name}", model, channels, classes, pixels)
    _warn_about_large_stem(name, model, pixels)
    return model


def build_imported(
    target: str, *, channels: int, classes: int, pixels: int, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """Return the result of ``package.module:callable`` for ``channels``, ``classes`` and ``args``.

    Raises:
        ValueError: There is no such callable, it fails, or its result does not map images to ``classes`` outputs.
    """
    build = import_object("target", target)
    if not callable(build):
        raise ValueError(f"target={target}: not a callable but {type(build).__name__}")
    model = call_user_code(f"target={target}", build, channels=channels, classes=classes, **(args or {}))
    if not isinstance(model, nn.Module):
        raise ValueError(f"target={target}: returned {type(model).__name__} instead of a torch.nn.Module")
    _check(f"target={target}", model, channels, classes, pixels)
    return model


def _check(setting: str, model: nn.Module, channels: int, classes: int, pixels: int) -> None:
    dtype = next((parameter.dtype for parameter in model.parameters()), None)
    images = torch.zeros(1, channels, pixels, pixels, device=device_of(model), dtype=dtype)
    try:
        check_compatible(model, images, classes)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error


@contextmanager
def _prefixed_errors(setting: str) -> Iterator[None]:
    """Turn any error of another author's code into a ``ValueError`` of one line that names the setting."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{setting}: fails ({reason})") from error


def _similar(name: str, names: list[str]) -> str:
    return f"similar: {', '.join(difflib.get_close_matches(name.lower(), names, n=5, cutoff=0.4) or names[:5])}"


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    return next(((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)


def _replace_first_convolution(model: nn.Module, channels: int) -> None:
    """Replace the first convolution, which takes 3 channels, by one for ``channels`` with outputs of the same scale."""
    first = _first_convolution(model)
    if first is None:
        raise ValueError("the model has no convolution that could be replaced to accept another number of channels")
    name, old = first
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        new.weight.normal_(0, float(old.weight.std()) * (3 / channels) ** 0.5)
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)


def _warn_about_large_stem(name: str, model: nn.Module, pixels: int) -> None:
    first = _first_convolution(model)
    if first is None or pixels >= _LARGE or max(first[1].stride) == 1:
        return
    kernel, stride = max(first[1].kernel_size), max(first[1].stride)
    log.warning(
        "model.name=%s: its stem, a %dx%d convolution with stride %d, is designed for large images; these have %d "
        "pixels (resnet18 and the other models of this package have stems for small images)",
        name,
        kernel,
        kernel,
        stride,
        pixels,
    )
