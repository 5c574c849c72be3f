"""The probe of the edge of stability: sharpness beside the threshold of the optimizer in use."""

import logging
from dataclasses import dataclass

from torch import Tensor

from fullbatch.analysis.eigenvalues import Eigenpairs, Operator, largest_eigenpairs
from fullbatch.analysis.gradient_statistics import batch_sharpness
from fullbatch.analysis.operators import curvature
from fullbatch.analysis.probes import Observation
from fullbatch.analysis.spectrum import spectral_density, trace
from fullbatch.analysis.stability import decay_of_loss, is_adaptive, preconditioner, stability_threshold
from fullbatch.training.state import Row

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharpnessProbe:
    """Top eigenvalues, warm-started from the last time, beside the threshold of the optimizer.

    Args:
        top_k, tolerance, max_matvecs, matrix: as in ``fullbatch.analysis.sharpness.sharpness``.
        trace_matvecs: products for an estimate of the trace; 0: none.
        density_vectors: random vectors for an estimate of the spectral density; 0: none.
        density_steps: Lanczos steps with each.
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
        """The numbers, with the function whose curvature they are."""
        what = f"eigenvalue of the {self.matrix} of L + weight_decay/2 ||t||^2 (label smoothing included; decay only "
        what += "where it is part of the loss; the gradient regularizer excluded; batch norm in training mode)"
        later = {f"sharpness_{n}": f"number {n} of the same" for n in range(2, self.top_k + 1)}
        return {
            "sharpness": f"largest {what}",
            **later,
            "sharpness_error": "estimated error, relative to the largest magnitude",
            "sharpness_matvecs": "products with all the data that the eigenvalues took",
            "preconditioned_sharpness": "largest eigenvalue of P^-1/2 A P^-1/2, P Adam's preconditioner",
            "stability_threshold": "where the optimizer diverges on a quadratic; for Adam, of the preconditioned one",
            "batch_sharpness": "mean over the batches of a stochastic step of g_b' H_b g_b / ||g_b||^2",
            "hessian_trace": "trace of the same matrix (Hutch++)",
            "hessian_trace_error": "its standard error",
        }

    def __call__(self, seen: Observation) -> Row:
        """Return the numbers; note the spectral density where it is asked for."""
        decay = decay_of_loss(seen.optimizer, seen.model)
        operator = curvature(seen.objective, matrix=self.matrix, weight_decay=decay)
        found = self._eigenpairs(operator, seen, "sharpness")
        row = {"sharpness": float(found.values[0])}
        row |= {f"sharpness_{n}": float(value) for n, value in enumerate(found.values[1:], start=2)}
        row |= {"sharpness_error": found.error, "sharpness_matvecs": float(found.matvecs)}
        row |= self._preconditioned(seen, decay)
        if (threshold := stability_threshold(seen.optimizer)) is not None:
            row["stability_threshold"] = threshold
        if seen.stochastic:
            row["batch_sharpness"] = batch_sharpness(seen.batches())
        return row | self._of_the_whole_spectrum(operator, seen)

    def _preconditioned(self, seen: Observation, decay: list[float]) -> Row:
        diagonal = preconditioner(seen.optimizer, seen.model) if is_adaptive(seen.optimizer) else None
        if diagonal is None:
            return {}
        operator = curvature(seen.objective, matrix=self.matrix, weight_decay=decay, preconditioner=diagonal)
        found = self._eigenpairs(operator, seen, "preconditioned_sharpness")
        return {"preconditioned_sharpness": float(found.values[0])}

    def _eigenpairs(self, operator: Operator, seen: Observation, name: str) -> Eigenpairs:
        start: Tensor | None = seen.memory.get(name)
        found = largest_eigenpairs(
            operator,
            self.top_k,
            tolerance=self.tolerance,
            max_matvecs=self.max_matvecs,
            start=start,
            seed=self.seed,
        )
        seen.memory[name] = found.memory
        if not found.converged:
            log.warning(
                "step %d: %s has not converged after %d products; the estimated error is %.1e",
                *(seen.step, name, found.matvecs, found.error),
            )
        return found

    def _of_the_whole_spectrum(self, operator: Operator, seen: Observation) -> Row:
        if self.density_vectors:
            density = spectral_density(operator, self.density_vectors, self.density_steps, self.seed)
            nodes, weights = density.nodes.tolist(), density.weights.tolist()
            numbers = [str(number) for number in range(len(nodes))]
            seen.note(seen.step, "density_node", numbers, nodes)
            seen.note(seen.step, "density_weight", numbers, weights)
        if not self.trace_matvecs:
            return {}
        found = trace(operator, self.trace_matvecs, self.seed)
        return {"hessian_trace": found.value, "hessian_trace_error": found.error}
