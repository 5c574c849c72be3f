"""Loading state dicts."""

from typing import Any

from torch import nn


def load_weights(model: nn.Module, state: dict[str, Any]) -> None:
    """Load a state dict into ``model``.

    Raises:
        ValueError: Entries differ in name or shape, or are not finite; the message lists the first three.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if shapes != expected:
        names = [name for name in {**expected, **shapes} if expected.get(name) != shapes.get(name)]
        listed = (f"{n}: {expected.get(n, 'absent')} here, {shapes.get(n, 'absent')} there" for n in names[:3])
        raise ValueError(f"the weights are those of another model: {len(names)} entries differ ({'; '.join(listed)})")
    not_finite = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if not_finite:
        raise ValueError(f"{len(not_finite)} entries of the weights are not finite ({', '.join(not_finite[:3])})")
    model.load_state_dict(state)
