"""Data of a run: where rows come from, which columns hold what, and how they are checked, split and augmented."""
