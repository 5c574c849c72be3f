"""Probes of a training run, except the sharpness: norms, statistics of the gradients, flatness."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fullbatch.analysis.flatness import flatness, m_sharpness, worst_case
from fullbatch.analysis.gradient_statistics import (
    cosine,
    gradient_curvature,
    gradient_statistics,
    sample_gradient_norms,
)
from fullbatch.analysis.probes import Observation
from fullbatch.landscape.directions import random_directions
from fullbatch.tensors import global_norm, mode, norms, trainable
from fullbatch.training.state import Row

MOMENTA = ("momentum_buffer", "exp_avg")
"""Names of the momentum, an exponential sum or average of gradients, in the states of optimizers."""

_GRADIENT_COLUMNS = {
    "gradient": {
        "grad_norm_after": "sqrt(sum_b n_b/N ||g_b||^2) after the step, without regularizer and clip",
        "full_grad_norm_after": "||g|| after the step, without regularizer and clip",
    },
    "momentum": {
        "momentum_alignment": "cosine of the optimizer's momentum after the step and the gradient g there",
        "momentum_norm": "norm of the momentum",
    },
    "snr": {
        "grad_std_norm": "||std_b g_b|| over sub-batches, unbiased",
        "grad_SNR": "||mean_b g_b|| / ||std_b g_b||",
    },
    "noise_scale": {
        "grad_noise": "unbiased estimate of tr S, S the covariance of one sample's gradient",
        "grad_signal": "unbiased estimate of the squared norm of the expected gradient, ||g||^2 - tr S/N",
        "grad_noise_scale": "grad_noise / grad_signal in samples; empty where the signal is not positive",
    },
    "curvature": {"grad_curvature": "g' H g / ||g||^2"},
    "sub_batches": {
        "sub_batch_grad_norm_min": "smallest gradient norm of a sub-batch",
        "sub_batch_grad_norm_max": "largest gradient norm of a sub-batch",
    },
}


@dataclass(frozen=True)
class ParameterNorm:
    """The squared norm of the parameters after the step; ``param_norm`` is the one before it."""

    columns: ClassVar[dict[str, str]] = {"param_norm_after": "||t||^2 after the step"}

    def __call__(self, observation: Observation) -> Row:
        """Return the squared norm."""
        return {"param_norm_after": float(global_norm(trainable(observation.model)).detach().square())}


@dataclass(frozen=True)
class GradientProbe:
    """Everything computed in one pass over the gradients of the sub-batches.

    Args:
        parts: a subset of gradient, momentum, snr, noise_scale, curvature, sub_batches.
        chunks: divides the data into this many times more sub-batches.
    """

    parts: frozenset[str]
    chunks: int = 1

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the requested parts."""
        tables = [table for part, table in _GRADIENT_COLUMNS.items() if part in self.parts]
        return {name: text for table in tables for name, text in table.items()}

    def __call__(self, observation: Observation) -> Row:
        """Return the statistics; note the norms of sub-batches and layers."""
        statistics = gradient_statistics(observation.objective, self.chunks)
        row = {
            "grad_norm_after": statistics.mean_squared_norm**0.5,
            "full_grad_norm_after": statistics.mean_norm,
            "grad_std_norm": statistics.std_norm,
            "grad_SNR": statistics.snr,
            "grad_noise": statistics.noise,
            "grad_signal": statistics.signal,
            "grad_noise_scale": statistics.noise_scale,
            "sub_batch_grad_norm_min": min(statistics.norms),
            "sub_batch_grad_norm_max": max(statistics.norms),
        }
        if "momentum" in self.parts:
            states = [observation.optimizer.state.get(p, {}) for p in trainable(observation.model)]
            for name in MOMENTA:
                buffers = [state[name] for state in states if isinstance(state.get(name), torch.Tensor)]
                if len(buffers) == len(states):
                    row["momentum_alignment"] = cosine(buffers, statistics.mean)
                    row["momentum_norm"] = float(global_norm(buffers))
                    break
        if "curvature" in self.parts:
            row["grad_curvature"] = gradient_curvature(observation.objective, statistics.mean)
        if "sub_batches" in self.parts:
            step, model, note = observation.step, observation.model, observation.note
            layers = [name for name, p in model.named_parameters() if p.requires_grad]
            note(step, "sub_batch_grad_norm", [str(n) for n in range(len(statistics.norms))], statistics.norms)
            note(step, "layer_grad_norm", layers, statistics.norms_of_layers())
            note(step, "layer_param_norm", layers, torch.stack(norms(trainable(model))).tolist())
        return {name: row[name] for name in self.columns if name in row}


@dataclass(frozen=True)
class SampleGradients:
    """Gradient norms of single samples; ``training`` is the mode of the model."""

    training: bool
    columns: ClassVar[dict[str, str]] = {
        "sample_grad_norm_mean": "mean norm of the gradients of single samples",
        "sample_grad_norm_max": "largest norm of the gradient of a single sample",
    }

    def __call__(self, observation: Observation) -> Row:
        """Return mean and maximum, and note the norm of each sample."""
        with mode(observation.model, training=self.training):
            norms = sample_gradient_norms(observation.objective)
        observation.note(observation.step, "sample_grad_norm", [str(n) for n in range(len(norms))], norms)
        return {"sample_grad_norm_mean": sum(norms) / len(norms), "sample_grad_norm_max": max(norms)}


@dataclass(frozen=True)
class FlatnessProbe:
    """The distance along random directions to where the loss in evaluation mode exceeds a threshold.

    Each direction is a function of (seed, number), the same every time, normalized by the current weights. The other
    fields are the arguments of ``fullbatch.analysis.flatness.flatness`` and of ``random_directions``.
    """

    step_size: float
    threshold: float
    norm: str
    num_directions: int
    max_steps: int
    seed: int
    columns: ClassVar[dict[str, str]] = {
        "flatness": "mean distance, in lengths of the normalized direction",
        "flatness_std": "standard deviation of the distance over the directions",
        "flatness_open": "directions along which the loss stayed below; counted with the farthest distance tried",
    }

    def __call__(self, observation: Observation) -> Row:
        """Return mean and standard deviation, and note the distance along each direction."""
        directions = random_directions(observation.model, self.num_directions, seed=self.seed, norm=self.norm)
        with mode(observation.model, training=False):
            result = flatness(
                observation.objective,
                directions.vectors,
                step_size=self.step_size,
                threshold=self.threshold,
                max_steps=self.max_steps,
            )
        names = [str(n) for n in range(self.num_directions)]
        observation.note(observation.step, "flatness", names, result.distances)
        return {"flatness": result.mean, "flatness_std": result.std, "flatness_open": float(result.num_open)}


@dataclass(frozen=True)
class WorstCase:
    """The increase of the loss at the worst point of a ball of radius ``rho``: of all data, of each ``m`` samples."""

    rho: float
    m: int
    columns: ClassVar[dict[str, str]] = {
        "worst_case": "L(t + rho g/||g||) - L(t)",
        "m_sharpness": "mean over sub-batches of m samples of l_b(t + rho g_b/||g_b||) - l_b(t)",
    }

    def __call__(self, observation: Observation) -> Row:
        """Return both increases."""
        objective = observation.objective
        increases = worst_case(objective, self.rho), m_sharpness(objective.plain(sub_batch=self.m), self.rho)
        return dict(zip(self.columns, increases, strict=True))
