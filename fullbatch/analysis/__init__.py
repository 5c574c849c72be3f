"""Procedures that look at a model without changing it: gradient statistics, flatness, sharpness."""
