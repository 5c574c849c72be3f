"""Gradient transforms: (gradients, parameters) -> gradients, chained one after the other."""
