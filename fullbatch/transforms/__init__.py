"""Gradient transformations: functions that change gradients in place, chained one after the other."""
