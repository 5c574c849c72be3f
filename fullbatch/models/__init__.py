"""Model families, building models by name, and files with trained models."""
