"""Sizes of every batch of the support matrix: rows, tokens of a text, and choices of a multiple-choice question."""

B, S, CHOICES = 3, 16, 3
