"""Full-batch training of vision models: exact gradients, gradient regularization, deterministic descent.

The names below are imported when they are first used, so that ``import fullbatch`` does not import torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Axis": "fullbatch.landscape.grid",
    "FullBatchObjective": "fullbatch.objective.full_batch",
    "GradRegularizer": "fullbatch.objective.gradient_penalty",
    "build_model": "fullbatch.models.registry",
    "determinism_culprit": "fullbatch.objective.determinism",
    "directions_between": "fullbatch.landscape.directions",
    "export_model": "fullbatch.training.export",
    "flatness": "fullbatch.analysis.flatness",
    "gradient_statistics": "fullbatch.analysis.gradient_statistics",
    "hessian_trace": "fullbatch.analysis.sharpness",
    "load_checkpoint": "fullbatch.training.checkpoint",
    "load_weights": "fullbatch.models.weights",
    "loss_function": "fullbatch.objective.losses",
    "loss_landscape": "fullbatch.landscape.any_module",
    "principal_components": "fullbatch.landscape.directions",
    "random_directions": "fullbatch.landscape.directions",
    "read_model": "fullbatch.models.model_file",
    "save_surface": "fullbatch.landscape.export",
    "sharpness": "fullbatch.analysis.sharpness",
    "spectral_density": "fullbatch.analysis.sharpness",
}

__all__ = [
    "Axis",
    "FullBatchObjective",
    "GradRegularizer",
    "build_model",
    "determinism_culprit",
    "directions_between",
    "export_model",
    "flatness",
    "gradient_statistics",
    "hessian_trace",
    "load_checkpoint",
    "load_weights",
    "loss_function",
    "loss_landscape",
    "principal_components",
    "random_directions",
    "read_model",
    "save_surface",
    "sharpness",
    "spectral_density",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fullbatch' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
