"""Analyze trained classifiers: their features and logits, in metrics, figures and a report."""
