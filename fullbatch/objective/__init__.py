"""The exact full-batch objective: loss, gradient, curvature, and the gradient regularizer."""
