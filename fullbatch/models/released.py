"""The models that were released with the paper, for ``torch.hub``; needs only torch."""

from pathlib import Path

import torch
from torch import nn

from fullbatch.models.model_file import read_model
from fullbatch.models.registry import build_model
from fullbatch.models.weights import load_weights

ADDRESS = "https://github.com/JonasGeiping/fullbatchtraining/releases/download/v1/"
CHECKSUMS: dict[str, str] = {}
"""File name -> hexadecimal SHA-256, verified after the download. No checksums have been published."""


def released_resnet(
    depth: int, name: str, pretrained: bool, file: str | Path | None = None, progress: bool = True
) -> nn.Module:
    """Build a ResNet for CIFAR-10; with trained weights it is in evaluation mode.

    Args:
        depth: number of layers.
        name: name of its file at ``ADDRESS``.
        pretrained: load trained weights.
        file: a file with the weights, in any format that ``read_model`` reads; None downloads the released ones once.
        progress: show the progress of the download.

    Raises:
        ValueError: The file contains no such model.
        OSError: The file does not exist, or the download failed.
    """
    model = build_model(f"resnet{depth}", channels=3, classes=10, pixels=32)
    if not pretrained and file is None:
        return model
    path = _download(name, progress) if file is None else Path(file)
    weights = read_model(path).weights
    try:
        load_weights(model, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return model.eval()


def _download(name: str, progress: bool) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(ADDRESS + name, str(path), CHECKSUMS.get(name), progress)
        except OSError as error:
            raise OSError(f"{ADDRESS}{name}: cannot be downloaded ({error}); pass a copy of it as file=...") from error
    return path
