"""Features and logits of trained classifiers: what they look like, in numbers, figures and a report."""
