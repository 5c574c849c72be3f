"""Optimizers beyond ``torch.optim``, learning-rate schedules, weight decay and the average of the weights."""
