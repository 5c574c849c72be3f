"""Measurements of a model that do not change it: gradient statistics, flatness, sharpness."""
