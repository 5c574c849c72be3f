"""The address of ``GradRegularizer`` in the paper's code."""

from fullbatch.objective.gradient_penalty import GradRegularizer

__all__ = ["GradRegularizer"]
