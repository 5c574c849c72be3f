"""The models that were released with the paper, for ``torch.hub``; needs torch alone."""

from pathlib import Path

import torch
from torch import nn

from fullbatch.models.model_file import read_model
from fullbatch.models.registry import build_model
from fullbatch.models.weights import load_weights

ADDRESS = "https://github.com/JonasGeiping/fullbatchtraining/releases/download/v1/"
CHECKSUMS: dict[str, str] = {}
"""File -> SHA-256, in hexadecimal, of what the address holds. None are known; one that is added here is checked."""


def released_resnet(
    depth: int, name: str, pretrained: bool, file: str | Path | None = None, progress: bool = True
) -> nn.Module:
    """Build the ResNet of that depth for CIFAR-10, in evaluation mode where it has trained weights.

    Args:
        depth: of the network.
        name: of its file at ``ADDRESS``.
        pretrained: load trained weights.
        file: a file to take them from, in any format that ``read_model`` reads; None downloads them, once.
        progress: show the download.

    Raises:
        ValueError: a file that holds no such model.
        OSError: a file that is not there, or no connection.
    """
    model = build_model(f"resnet{depth}", channels=3, classes=10, pixels=32)
    if not pretrained and file is None:
        return model
    path = _downloaded(name, progress) if file is None else Path(file)
    weights = read_model(path).weights
    try:
        load_weights(model, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return model.eval()


def _downloaded(name: str, progress: bool) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(ADDRESS + name, str(path), CHECKSUMS.get(name), progress)
        except OSError as error:
            raise OSError(f"{ADDRESS}{name}: cannot be downloaded ({error}); name a copy of it as file=...") from error
    return path
