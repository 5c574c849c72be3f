"""The probes of a training run, but for the sharpness: norms, statistics of the gradients, flatness."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fullbatch.analysis.flatness import flatness, m_sharpness, worst_case
from fullbatch.analysis.gradient_statistics import (
    GradientStatistics,
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
"""Where optimizers keep their momentum, an exponential sum or average of gradients."""


@dataclass(frozen=True)
class ParameterNorm:
    """The norm of the parameters, as ``param_norm`` has it where the step starts."""

    columns: dict[str, str] = field(default_factory=lambda: {"param_norm_after": "||t||^2 after the step"})

    def __call__(self, seen: Observation) -> Row:
        """Return it, and note the norms of the layers."""
        return {"param_norm_after": float(global_norm(trainable(seen.model)).detach().square())}


_COLUMNS = {
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
        "sub_batch_grad_norm_min": "shortest gradient of a sub-batch",
        "sub_batch_grad_norm_max": "longest gradient of a sub-batch",
    },
}


@dataclass(frozen=True)
class GradientProbe:
    """All that comes from one pass over the gradients of the sub-batches.

    Args:
        parts: which of gradient, momentum, snr, noise_scale, curvature, sub_batches.
        chunks: cuts the data into so many times more sub-batches.
    """

    parts: frozenset[str]
    chunks: int = 1

    @property
    def columns(self) -> dict[str, str]:
        """The numbers of the parts that are asked for."""
        return {name: text for part, texts in _COLUMNS.items() if part in self.parts for name, text in texts.items()}

    def __call__(self, seen: Observation) -> Row:
        """Return the numbers; note the norms of sub-batches and layers."""
        found, row = gradient_statistics(seen.objective, self.chunks), Row()
        for part, measure in _MEASURES.items():
            if part in self.parts:
                row |= measure(found, seen)
        return row


def _gradient(found: GradientStatistics, seen: Observation) -> Row:
    return {"grad_norm_after": found.mean_squared_norm**0.5, "full_grad_norm_after": found.mean_norm}


def _momentum(found: GradientStatistics, seen: Observation) -> Row:
    states = [seen.optimizer.state.get(p, {}) for p in trainable(seen.model)]
    for name in MOMENTA:
        buffers = [state[name] for state in states if isinstance(state.get(name), torch.Tensor)]
        if len(buffers) == len(states):
            length = float(global_norm(buffers))
            return {"momentum_alignment": cosine(buffers, found.mean), "momentum_norm": length}
    return {}


def _snr(found: GradientStatistics, seen: Observation) -> Row:
    return {"grad_std_norm": found.std_norm, "grad_SNR": found.snr}


def _noise_scale(found: GradientStatistics, seen: Observation) -> Row:
    return {"grad_noise": found.noise, "grad_signal": found.signal, "grad_noise_scale": found.noise_scale}


def _curvature(found: GradientStatistics, seen: Observation) -> Row:
    return {"grad_curvature": gradient_curvature(seen.objective, found.mean)}


def _sub_batches(found: GradientStatistics, seen: Observation) -> Row:
    layers = [name for name, p in seen.model.named_parameters() if p.requires_grad]
    lengths = torch.stack(norms(trainable(seen.model))).tolist()
    seen.note(seen.step, "sub_batch_grad_norm", [str(number) for number in range(len(found.norms))], found.norms)
    seen.note(seen.step, "layer_grad_norm", layers, found.norms_of_layers())
    seen.note(seen.step, "layer_param_norm", layers, lengths)
    return {"sub_batch_grad_norm_min": min(found.norms), "sub_batch_grad_norm_max": max(found.norms)}


_MEASURES: dict[str, Callable[[GradientStatistics, Observation], Row]] = {
    "gradient": _gradient,
    "momentum": _momentum,
    "snr": _snr,
    "noise_scale": _noise_scale,
    "curvature": _curvature,
    "sub_batches": _sub_batches,
}


@dataclass(frozen=True)
class SampleGradients:
    """Gradient norms of single samples; ``training`` is the mode of the model."""

    training: bool
    columns: dict[str, str] = field(
        default_factory=lambda: {
            "sample_grad_norm_mean": "mean of the norms of the samples' own gradients",
            "sample_grad_norm_max": "the longest of them",
        }
    )

    def __call__(self, seen: Observation) -> Row:
        """Return mean and maximum, and note the norm of each sample."""
        with mode(seen.model, training=self.training):
            found = sample_gradient_norms(seen.objective)
        seen.note(seen.step, "sample_grad_norm", [str(number) for number in range(len(found))], found)
        return {"sample_grad_norm_mean": sum(found) / len(found), "sample_grad_norm_max": max(found)}


@dataclass(frozen=True)
class FlatnessProbe:
    """The distance to where the loss, in evaluation mode, exceeds a threshold, along random directions.

    The directions are draws of (seed, number), the same every time, normalised by the weights of the moment.
    """

    step_size: float
    threshold: float
    norm: str
    num_directions: int
    max_steps: int
    seed: int
    columns: dict[str, str] = field(
        default_factory=lambda: {
            "flatness": "mean distance, in lengths of the normalised direction",
            "flatness_std": "its standard deviation over the directions",
            "flatness_open": "directions along which the loss stayed below; counted with the farthest distance tried",
        }
    )

    def __call__(self, seen: Observation) -> Row:
        """Return mean and spread, and note the distance of each direction."""
        drawn = random_directions(seen.model, self.num_directions, seed=self.seed, norm=self.norm)
        with mode(seen.model, training=False):
            found = flatness(
                seen.objective,
                drawn.vectors,
                step_size=self.step_size,
                threshold=self.threshold,
                max_steps=self.max_steps,
            )
        seen.note(seen.step, "flatness", [str(n) for n in range(self.num_directions)], found.distances)
        return {"flatness": found.mean, "flatness_std": found.std, "flatness_open": float(found.num_open)}


@dataclass(frozen=True)
class WorstCase:
    """The rise of the loss at the worst point of a ball, for all data at once and for each m samples."""

    rho: float
    m: int
    columns: dict[str, str] = field(
        default_factory=lambda: {
            "worst_case": "L(t + rho g/||g||) - L(t)",
            "m_sharpness": "mean over sub-batches of m samples of l_b(t + rho g_b/||g_b||) - l_b(t)",
        }
    )

    def __call__(self, seen: Observation) -> Row:
        """Return both rises."""
        of_parts = seen.objective.plain(sub_batch=self.m)
        return {"worst_case": worst_case(seen.objective, self.rho), "m_sharpness": m_sharpness(of_parts, self.rho)}
