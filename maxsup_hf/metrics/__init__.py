"""Metrics as pure functions on arrays; nothing here knows of a model or a Trainer."""

from maxsup_hf.metrics.classification import accuracy, ece, nll

__all__ = ["accuracy", "ece", "nll"]
