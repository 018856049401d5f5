"""The numbers of a row, and the gradients of formulas on them, computed faster than `maxsup_hf.logit_stats` spells out."""
