"""Losses side by side: the same task, data, seeds and strength, a run for each, and a report."""
