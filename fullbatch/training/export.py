"""Exporting trained models: the weights as safetensors, with a card that describes their origin."""

import json
import math
from pathlib import Path
from typing import Any

from fullbatch.models.model_file import read_model
from fullbatch.runtime.files import write_atomically

MEASURED = ("train_loss", "train_acc", "valid_loss", "valid_acc")
CARD_FORMAT = "fullbatch model card"


def export_model(source: str | Path, target: str | Path) -> dict[str, Any]:
    """Write the weights in a file to ``target`` as safetensors, with a card beside them, and return the card.

    The card has the name of ``target`` with the suffix ``.json``. It contains the model, the data, the hyperparameters,
    the accuracy and the command of the run; for a file of another program only the number of steps is known.

    Args:
        source: any file that ``read_model`` reads.
        target: a path that ends in ``.safetensors``.

    Raises:
        ValueError: ``source`` cannot be read, ``target`` has another suffix, or safetensors is not installed (extra
            ``safetensors``).
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: exported weights need a name that ends in .safetensors")
    try:
        from safetensors.torch import save  # noqa: PLC0415 (an extra)
    except ImportError:
        raise ValueError("safetensors is not installed: pip install 'fullbatch[safetensors]'") from None
    stored = read_model(source)
    config = stored.checkpoint.get("config", {})
    state = stored.checkpoint.get("state", {"ema": None, "rows": []})
    accuracy: dict[str, float] = {}
    for row in state["rows"]:
        accuracy |= {name: row[name] for name in MEASURED if name in row}
        accuracy |= {"validated_after_step": row["step"]} if "valid_acc" in row else {}
    card: dict[str, Any] = _finite(
        {
            "format": CARD_FORMAT,
            "model": config.get("model"),
            "data": config.get("data"),
            "hyperparameters": config.get("hyp"),
            "seed": stored.checkpoint.get("seed"),
            "steps": stored.step,
            "weights": "last step" if state["ema"] is None else "moving average",
            "accuracy": accuracy,
            "command": stored.checkpoint.get("command"),
        }
    )
    # the format has no channels_last and no two names for the same memory
    write_atomically(target, save({name: tensor.clone().contiguous() for name, tensor in stored.weights.items()}))
    write_atomically(card_path(target), f"{json.dumps(card, indent=2, allow_nan=False)}\n".encode())
    return card


def card_path(weights: str | Path) -> Path:
    """Return the path of the card that belongs to exported weights."""
    return Path(weights).with_suffix(".json")


def read_card(weights: str | Path) -> dict[str, Any]:
    """Return the card of exported weights; ``ValueError`` if the file is not a card."""
    path = card_path(weights)
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a model card ({error})") from error
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise ValueError(f"{path}: not a model card")
    return card


def _finite(value: Any) -> Any:
    """Return ``value`` with infinities and nan, which JSON lacks, replaced by their names."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
