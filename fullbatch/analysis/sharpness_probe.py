"""The probe of the edge of stability: sharpness beside the threshold of the optimizer."""

import logging
from dataclasses import dataclass

from torch import Tensor

from fullbatch.analysis.eigenvalues import Eigenpairs, Operator, largest_eigenpairs
from fullbatch.analysis.gradient_statistics import batch_sharpness
from fullbatch.analysis.operators import curvature
from fullbatch.analysis.probes import Observation
from fullbatch.analysis.spectrum import spectral_density, trace
from fullbatch.analysis.stability import decay_of_loss, preconditioner, stability_threshold
from fullbatch.tensors import trainable
from fullbatch.training.state import Row

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharpnessProbe:
    """The largest eigenvalues, warm-started from the last observation, beside the threshold of the optimizer.

    Args:
        top_k, tolerance, max_matvecs, matrix: as in ``fullbatch.analysis.sharpness.sharpness``.
        trace_matvecs: products for an estimate of the trace; 0: no estimate.
        density_vectors: random vectors for an estimate of the spectral density; 0: no estimate.
        density_steps: Lanczos steps per vector.
        seed: of all random vectors.
    """

    top_k: int = 1
    tolerance: float = 1e-2
    max_matvecs: int = 200
    matrix: str = "hessian"
    trace_matvecs: int = 0
    density_vectors: int = 0
    density_steps: int = 80
    seed: int = 0

    @property
    def columns(self) -> dict[str, str]:
        """The columns, with the function whose curvature is measured."""
        function = "L + weight_decay/2 ||t||^2 (label smoothing included; decay only where it is part of the loss; "
        function += "the gradient regularizer excluded; batch norm in training mode)"
        matrix = "hessian, by central differences," if self.matrix == "central-differences" else self.matrix
        return {
            "sharpness": f"largest eigenvalue of the {matrix} of {function}",
            **{f"sharpness_{n}": f"eigenvalue number {n} of the same matrix" for n in range(2, self.top_k + 1)},
            "sharpness_error": "estimated error, relative to the largest magnitude",
            "sharpness_matvecs": "products with all the data that the eigenvalues took",
            "preconditioned_sharpness": "largest eigenvalue of P^-1/2 A P^-1/2, P Adam's preconditioner",
            "stability_threshold": "where the optimizer diverges on a quadratic; for Adam, of the preconditioned one",
            "batch_sharpness": "mean over the batches of a stochastic step of g_b' H_b g_b / ||g_b||^2",
            "hessian_trace": "trace of the same matrix (Hutch++)",
            "hessian_trace_error": "its standard error",
        }

    def __call__(self, observation: Observation) -> Row:
        """Return the numbers; note the spectral density if it is requested."""
        optimizer, model, objective = observation.optimizer, observation.model, observation.objective
        decay = decay_of_loss(optimizer, model)
        operator = curvature(objective, matrix=self.matrix, weight_decay=decay)
        pairs = self._eigenpairs(operator, observation, "sharpness")
        row = {"sharpness": float(pairs.values[0])}
        row |= {f"sharpness_{n}": float(value) for n, value in enumerate(pairs.values[1:], start=2)}
        row |= {"sharpness_error": pairs.error, "sharpness_matvecs": float(pairs.matvecs)}
        if (diagonal := preconditioner(optimizer, model)) is not None:
            scaled = curvature(objective, matrix=self.matrix, weight_decay=decay, preconditioner=diagonal)
            pairs = self._eigenpairs(scaled, observation, "preconditioned_sharpness")
            row["preconditioned_sharpness"] = float(pairs.values[0])
        if (threshold := stability_threshold(optimizer)) is not None:
            row["stability_threshold"] = threshold
        if observation.stochastic:
            differences = self.matrix.lower() == "central-differences"
            implementation = "central-differences" if differences else "autograd"
            row["batch_sharpness"] = batch_sharpness(observation.batches(), implementation)
        if self.density_vectors:
            density = spectral_density(operator, self.density_vectors, self.density_steps, self.seed)
            names = [str(n) for n in range(len(density.nodes))]
            observation.note(observation.step, "density_node", names, density.nodes.tolist())
            observation.note(observation.step, "density_weight", names, density.weights.tolist())
        if self.trace_matvecs:
            estimate = trace(operator, self.trace_matvecs, self.seed)
            row |= {"hessian_trace": estimate.value, "hessian_trace_error": estimate.error}
        return row

    def _eigenpairs(self, operator: Operator, observation: Observation, name: str) -> Eigenpairs:
        """Return the eigenpairs, starting from and updating ``memory[name]``."""
        size, start = sum(p.numel() for p in trainable(observation.model)), observation.memory.get(name)
        usable = isinstance(start, Tensor) and start.ndim == 2 and start.shape[1] == size  # files may hold anything
        pairs = largest_eigenpairs(
            operator,
            self.top_k,
            tolerance=self.tolerance,
            max_matvecs=self.max_matvecs,
            start=start if usable else None,
            seed=self.seed,
        )
        observation.memory[name] = pairs.memory
        if not pairs.converged:
            log.warning(
                "step %d: %s has not converged after %d products; the estimated error is %.1e",
                *(observation.step, name, pairs.matvecs, pairs.error),
            )
        return pairs
