"""The model families, and building a model by its name."""
