"""Commands that read results: ``python -m fullbatch report``, ``status``, ``page`` and ``inspect``."""
