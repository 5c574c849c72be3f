"""Optimizers beyond ``torch.optim``, learning-rate schedules, weight-decay groups and the average of the weights."""
