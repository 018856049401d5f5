"""Predictions of trained models for new data: `maxsup-hf predict`."""
