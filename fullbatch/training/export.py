"""Models for others to use: the weights as safetensors, and a card beside them that says where they come from."""

import json
import math
from pathlib import Path
from typing import Any

from fullbatch.runtime.files import write_atomically
from fullbatch.training.model_file import StoredModel, read_model
from fullbatch.training.state import Row

MEASURED = ("train_loss", "train_acc", "valid_loss", "valid_acc")
CARD_FORMAT = "fullbatch model card"


def export_model(source: str | Path, target: str | Path) -> dict[str, Any]:
    """Write the weights in ``source``, any file that ``read_model`` reads, to ``target``, and return their card.

    The card, ``target`` with the ending ``.json``, has the model, the data, the hyperparameters, the accuracy and the
    command of the run; of a file of another program only the number of steps is known. Needs the extra
    ``safetensors``. Raises ``ValueError`` where it is missing, for what ``read_model`` refuses, and for a ``target``
    that does not end in ``.safetensors``.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: the name of exported weights ends in .safetensors")
    try:
        from safetensors.torch import save  # noqa: PLC0415 (an extra)
    except ImportError:
        raise ValueError("safetensors is not installed: pip install 'fullbatch[safetensors]'") from None
    stored = read_model(source)
    card = _card(stored)
    text = json.dumps(card, indent=2, allow_nan=False) + "\n"
    # contiguous: the format knows no channels_last, and no two names of the same memory
    write_atomically(target, save({name: tensor.clone().contiguous() for name, tensor in stored.weights.items()}))
    write_atomically(card_path(target), text.encode())
    return card


def card_path(weights: str | Path) -> Path:
    """Return where the card of exported weights lies."""
    return Path(weights).with_suffix(".json")


def read_card(weights: str | Path) -> dict[str, Any]:
    """Return the card of exported weights; ``ValueError`` for a file that is none."""
    path = card_path(weights)
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no model card ({error})") from error
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise ValueError(f"{path}: no model card")
    return card


def _card(stored: StoredModel) -> dict[str, Any]:
    content = stored.checkpoint
    config = content.get("config", {})
    state = content.get("state", {"ema": None, "rows": []})
    card = {
        "format": CARD_FORMAT,
        "model": config.get("model"),
        "data": config.get("data"),
        "hyperparameters": config.get("hyp"),
        "seed": content.get("seed"),
        "steps": stored.step,
        "weights": "last step" if state["ema"] is None else "moving average",
        "accuracy": _last_measured(state["rows"]),
        "command": content.get("command"),
    }
    finite: dict[str, Any] = _without_infinities(card)
    return finite


def _last_measured(rows: list[Row]) -> dict[str, float]:
    """Return the latest value of each column in ``MEASURED``, and at which step it was measured."""
    last: dict[str, float] = {}
    for row in rows:
        last |= {name: row[name] for name in MEASURED if name in row}
        last |= {"validated_after_step": row["step"]} if "valid_acc" in row else {}
    return last


def _without_infinities(value: Any) -> Any:
    """JSON has no infinities and no nan: they become their names."""
    if isinstance(value, dict):
        return {key: _without_infinities(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
