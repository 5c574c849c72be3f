"""Loading a state dict into a model, with one clear line for what does not fit."""

from typing import Any

from torch import nn


def load_weights(model: nn.Module, state: dict[str, Any]) -> None:
    """Load a state dict; ``ValueError`` with the first entries that differ in name or shape, or are not finite."""
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if ours != theirs:
        names = [name for name in (*ours, *(theirs.keys() - ours.keys())) if ours.get(name) != theirs.get(name)]
        shown = "; ".join(f"{n}: {ours.get(n, 'absent')} here, {theirs.get(n, 'absent')} there" for n in names[:3])
        raise ValueError(f"the weights are those of another model: {len(names)} entries differ ({shown})")
    spoiled = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if spoiled:
        raise ValueError(f"{len(spoiled)} entries of the weights are not finite ({', '.join(spoiled[:3])})")
    model.load_state_dict(state)
