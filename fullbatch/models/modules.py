"""Modules under the address that users of the paper's code know."""

from fullbatch.objective.gradient_penalty import GradRegularizer

__all__ = ["GradRegularizer"]
