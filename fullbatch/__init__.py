"""Full-batch training of vision models: exact gradients, gradient regularization, deterministic descent.

The public names are imported on first use, so that ``import fullbatch`` does not import torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "Axis": "landscape.grid",  # equally spaced coordinates of a loss landscape
    "FullBatchObjective": "objective.full_batch",  # loss and exact gradient over all blocks of the data
    "GradRegularizer": "objective.gradient_penalty",  # gradient of the regularizer eta/8 ||g||^2
    "build_model": "models.registry",  # build a model by name
    "determinism_culprit": "objective.determinism",  # find out why two evaluations differ
    "directions_between": "landscape.directions",  # directions from one model towards others
    "export_model": "training.export",  # write weights as safetensors, with a card
    "flatness": "analysis.flatness",  # distance along random directions to a loss threshold
    "gradient_statistics": "analysis.gradient_statistics",  # signal-to-noise ratio, noise scale and more
    "hessian_trace": "analysis.sharpness",  # estimate of the trace of the Hessian
    "load_checkpoint": "training.checkpoint",  # read a checkpoint of a run
    "load_weights": "models.weights",  # load a state dict into a model
    "loss_function": "objective.losses",  # get a loss by name
    "loss_landscape": "landscape.any_module",  # losses of any module on a line or a plane
    "principal_components": "landscape.directions",  # directions of largest variance of a trajectory
    "random_directions": "landscape.directions",  # normalized random directions
    "read_model": "models.model_file",  # read a trained model from a file of any format
    "save_surface": "landscape.export",  # write a loss landscape as PNG, PDF, SVG, HTML, VTK or CSV
    "sharpness": "analysis.sharpness",  # largest eigenvalues of the Hessian
    "spectral_density": "analysis.sharpness",  # estimate of the spectral density of the Hessian
}
"""Public name -> module of the package."""

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fullbatch' has no attribute {name!r}")
    return getattr(import_module(f"fullbatch.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
