"""What the paper claims, what was measured, and whether it holds: of all comparisons in model_cards/results.

    python model_cards/verdicts.py        # writes model_cards/results/verdicts.md

The difference is the mean over seeds of the two losses' values for the same seed. A claim holds, or is contradicted, where
that mean is greater than its spread, two standard errors, and a paired t-test says p < 0.05; else it is undecided.
"""

import json
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import ttest_rel

RESULTS = Path(__file__).parent / "results"
# (first, second, metric, sign of first − second, where the paper (arXiv 2502.15798) says so)
CLAIMS = [
    ("maxsup", "label_smoothing", "accuracy", 1, "MaxSup is more accurate than label smoothing (Table 1)"),
    ("maxsup", "cross_entropy", "accuracy", 1, "… and than cross-entropy (Table 1)"),
    ("label_smoothing", "cross_entropy", "feature_within", -1, "label smoothing collapses classes (Table 2)"),
    ("maxsup", "label_smoothing", "feature_within", 1, "MaxSup less so (Table 2)"),
    ("maxsup", "cross_entropy", "feature_r2", 1, "MaxSup separates classes better than cross-entropy (Table 2)"),
    ("maxsup", "label_smoothing", "confidence_when_wrong", -1, "MaxSup is less certain where it is wrong (Section 3)"),
    ("ls_regularization", "cross_entropy", "accuracy", 1, "the regularization half alone helps (Table 1)"),
    ("ls_error_amplification", "cross_entropy", "accuracy", -1, "the error-amplification half alone hurts (Table 1)"),
]


def verdict(differences: list[float], first: list[float], second: list[float], sign: int) -> str:
    mean, spread = fmean(differences), 2 * stdev(differences) / len(differences) ** 0.5
    if not abs(mean) > spread or not ttest_rel(first, second).pvalue < 0.05:
        return "undecided"
    return "holds" if mean * sign > 0 else "contradicted"


def rows(name: str, tables: dict) -> list[str]:
    found = []
    for one, other, metric, sign, claim in CLAIMS:
        values = tables["shared"].get(metric, {}).get("values", {})
        if one not in values or other not in values:
            continue
        first, second = ([values[loss][seed] for seed in sorted(values[loss])] for loss in (one, other))
        differences = [x - y for x, y in zip(first, second, strict=True)]
        measured = f"{fmean(differences):+.4f} ± {stdev(differences):.4f}"
        compared = f"{metric.removeprefix('feature_')}, {one} − {other}"
        found.append(f"| {name} | {claim} | {compared} | {measured} | {verdict(differences, first, second, sign)} |")
    return found


def text() -> str:
    lines = ["| data | the paper's claim | measured | difference over seeds | here |", "|---|---|---|---:|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "tables" in found:
            lines += rows(path.stem, found["tables"])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (RESULTS / "verdicts.md").write_text(text(), encoding="utf-8")
    print(text(), end="")
