"""Mathematics: the exact full-batch objective, its gradient and curvature, and the gradient regularizer."""
