"""Models from elsewhere: torchvision's, timm's, and a callable of the user's own."""

import difflib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fullbatch.randomness import preserved_rng
from fullbatch.tensors import device_of

log = logging.getLogger(__name__)

_LARGE = 112  # half of the 224 pixels that stems with strides are made for
_AUXILIARY = {"aux_logits": False, "init_weights": True}  # one output only, and the initialization of the paper
_OPTIONS_OF_TORCHVISION: dict[str, dict[str, Any]] = {"googlenet": _AUXILIARY, "inception": _AUXILIARY}


def build_torchvision(name: str, *, channels: int, classes: int, pixels: int) -> nn.Module:
    """Return torchvision's classifier ``name`` with fresh weights, for images of ``channels`` and ``pixels``.

    Raises ``ValueError`` for a name that is unknown and for images that the model does not take.
    """
    from torchvision import models  # noqa: PLC0415 (seconds to import)

    known = models.list_models(module=models)
    if name.lower() not in known:
        raise ValueError(f"name={name}: no classifier of torchvision; {_near(name, known)}")
    options = next((given for prefix, given in _OPTIONS_OF_TORCHVISION.items() if name.lower().startswith(prefix)), {})
    if name.lower().startswith("vit"):
        options = {"image_size": pixels}
    elif name.lower().startswith("maxvit"):
        options = {"input_size": (pixels, pixels)}
    with _refusing(f"name={name}"):
        model: nn.Module = models.get_model(name.lower(), weights=None, num_classes=classes, **options)
    if channels != 3:
        _take_channels(model, channels)
    check_outputs(f"name={name}", model, channels, classes, pixels)
    _warn_of_large_stem(name, model, pixels)
    return model


def build_timm(name: str, *, channels: int, classes: int, pixels: int) -> nn.Module:
    """Return timm's classifier ``name`` with fresh weights; as ``build_torchvision``, and needs the extra ``timm``."""
    try:
        import timm  # noqa: PLC0415 (an extra)
    except ImportError:
        raise ValueError("timm is not installed: pip install 'fullbatch[timm]'") from None
    name = name if timm.is_model(name) else name.lower()
    if not timm.is_model(name):
        raise ValueError(f"name={name}: no classifier of timm; {_near(name, timm.list_models())}")
    config = timm.models.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": pixels} if getattr(config, "fixed_input_size", False) else {}
    with _refusing(f"name={name}"):
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **options)
    check_outputs(f"name={name}", model, channels, classes, pixels)
    _warn_of_large_stem(name, model, pixels)
    return model


def build_imported(target: str, *, channels: int, classes: int, pixels: int) -> nn.Module:
    """Return what ``package.module:callable`` returns for ``channels`` and ``classes``.

    Raises ``ValueError`` where there is no such callable, or its model does not map images to ``classes`` outputs.
    """
    module_name, colon, attribute = target.partition(":")
    if not (colon and module_name and attribute):
        raise ValueError(f"target={target}: should be package.module:callable")
    with _launch_folder_importable():
        build = _imported(target, module_name, attribute)
        with _refusing(f"target={target}"):
            model = build(channels=channels, classes=classes)
    if not isinstance(model, nn.Module):
        raise ValueError(f"target={target}: returned {type(model).__name__} in the place of a torch.nn.Module")
    check_outputs(f"target={target}", model, channels, classes, pixels)
    return model


def _imported(target: str, module_name: str, attribute: str) -> Callable[..., Any]:
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"target={target}: cannot be imported ({error})") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"target={target}: {module_name} has no {attribute}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"target={target}: is no callable but {type(found).__name__}")
    callable_found: Callable[..., Any] = found
    return callable_found


def check_outputs(what: str, model: nn.Module, channels: int, classes: int, pixels: int) -> None:
    """Raise ``ValueError`` unless ``model`` maps images [B, channels, pixels, pixels] to outputs [B, classes]."""
    modes = [(module, module.training) for module in model.modules()]
    dtype = next((parameter.dtype for parameter in model.parameters()), None)
    images = torch.zeros(1, channels, pixels, pixels, device=device_of(model), dtype=dtype)
    try:
        generator = torch.device("cpu") if images.is_meta else images.device
        with torch.no_grad(), preserved_rng(generator), _refusing(what, f" on images {_shape(images)}"):
            outputs = model.eval()(images)
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (1, classes):
        found = _shape(outputs) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ValueError(f"{what}: maps images {_shape(images)} to {found} in the place of [1, {classes}]")


def _shape(tensor: torch.Tensor) -> str:
    return str(list(tensor.shape))


@contextmanager
def _refusing(what: str, where: str = "") -> Iterator[None]:
    """Turn whatever somebody else's code raises into a ``ValueError`` of one line."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{what}: fails{where} ({reason})") from error


@contextmanager
def _launch_folder_importable() -> Iterator[None]:
    """Let imports find the modules of the folder where the program was started, after all others."""
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.4)
    return f"near are {', '.join(near or known[:5])}"


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    return next(((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)), None)


def _take_channels(model: nn.Module, channels: int) -> None:
    """Put a convolution for ``channels`` in the place of the first one, which is for three."""
    found = _first_convolution(model)
    if found is None:
        raise ValueError("the model has no convolution that could take images of another number of channels")
    name, old = found
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


def _warn_of_large_stem(name: str, model: nn.Module, pixels: int) -> None:
    found = _first_convolution(model)
    if found is None or pixels >= _LARGE or max(found[1].stride) == 1:
        return
    kernel, stride = max(found[1].kernel_size), max(found[1].stride)
    log.warning(
        "model.name=%s: its stem, a %dx%d convolution with stride %d, is made for large images; these have %d pixels "
        "(model=resnet18 and its like have stems for small ones)",
        name,
        kernel,
        kernel,
        stride,
        pixels,
    )
