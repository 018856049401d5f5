"""What the paper claims, what was measured, and whether it holds: of all comparisons in model_cards/results.

    python model_cards/verdicts.py        # writes model_cards/results/verdicts.md

The difference is the mean over seeds of the two losses' values for the same seed. A claim holds, or is contradicted, where
that mean is greater than its spread, two standard errors, and a paired t-test says p < 0.05; else it is undecided.
"""

import json
from pathlib import Path
from statistics import fmean, stdev

from maxsup_hf.comparison.statistics import paired_p

RESULTS = Path(__file__).parent / "results"
LEVEL = 0.05
# (first, second, metric, sign of first − second, where the paper (arXiv 2502.15798) says so)
CLAIMS = [
    ("maxsup", "label_smoothing", "accuracy", 1, "MaxSup is more accurate than label smoothing (Table 1)"),
    ("maxsup", "cross_entropy", "accuracy", 1, "MaxSup is more accurate than cross-entropy (Table 1)"),
    ("label_smoothing", "cross_entropy", "feature_within", -1, "label smoothing collapses classes (Table 2)"),
    ("label_smoothing", "cross_entropy", "train_feature_within", -1, "the same on the training data"),
    ("maxsup", "label_smoothing", "feature_within", 1, "MaxSup collapses them less than label smoothing (Table 2)"),
    ("maxsup", "label_smoothing", "train_feature_within", 1, "the same on the training data"),
    ("maxsup", "cross_entropy", "feature_r2", 1, "MaxSup separates classes better than cross-entropy (Table 2)"),
    ("maxsup", "cross_entropy", "train_feature_r2", 1, "the same on the training data"),
    ("label_smoothing", "cross_entropy", "probe_accuracy", -1, "features of label smoothing transfer worse (Table 3)"),
    (
        "maxsup",
        "label_smoothing",
        "probe_accuracy",
        1,
        "features of MaxSup transfer better than those of label smoothing (Table 3)",
    ),
    ("maxsup", "label_smoothing", "confidence_when_wrong", -1, "MaxSup is less certain where it is wrong (Section 3)"),
    (
        "ls_error_amplification",
        "cross_entropy",
        "confidence_when_wrong",
        1,
        "error amplification makes errors more certain (Section 3)",
    ),
    ("ls_regularization", "cross_entropy", "accuracy", 1, "the regularization half alone helps (Table 1)"),
    ("ls_error_amplification", "cross_entropy", "accuracy", -1, "the error-amplification half alone hurts (Table 1)"),
]


def verdict(differences: list[float], sign: int) -> str:
    mean, spread = fmean(differences), 2 * stdev(differences) / len(differences) ** 0.5
    if not abs(mean) > spread or not paired_p(differences, "t") < LEVEL:
        return "undecided"
    return "holds" if mean * sign > 0 else "contradicted"


def measured(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """metric -> loss -> seed -> value: of a comparison's table, and of what lies beyond it."""
    tables = json.loads(path.read_text(encoding="utf-8")).get("tables", {"shared": {}})
    found = {metric: of["values"] for metric, of in tables["shared"].items()}
    beyond = path.with_name(f"{path.stem}-beyond.json")
    return found | json.loads(beyond.read_text(encoding="utf-8"))["values"] if beyond.exists() else found


def text() -> str:
    """Where each claim holds, and the differences behind that."""
    summary = ["| the paper's claim | holds | undecided | contradicted |", "|---|---|---|---|"]
    lines = ["| claim | data | compared | difference over seeds | here |", "|---|---|---|---:|---|"]
    every = {path.stem: measured(path) for path in sorted(RESULTS.glob("*.json"))}
    for one, other, metric, sign, claim in CLAIMS:
        found: dict[str, list[str]] = {"holds": [], "undecided": [], "contradicted": []}
        for name, values in every.items():
            first, second = (values.get(metric, {}).get(loss, {}) for loss in (one, other))
            differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
            if len(differences) < 2:
                continue
            here = verdict(differences, sign)
            spread = f"{fmean(differences):+.4f} ± {stdev(differences):.4f}"
            compared = f"{metric.replace('feature_', '').replace('_', ' ')}, {one} − {other}"
            lines.append(f"| {claim * (not any(found.values()))} | {name} | {compared} | {spread} | {here} |")
            found[here].append(name)
        summary.append(f"| {claim} | {' | '.join(', '.join(names) for names in found.values())} |")
    return "\n".join([*summary, "", *lines]) + "\n"


if __name__ == "__main__":
    (RESULTS / "verdicts.md").write_text(text(), encoding="utf-8")
    print(text(), end="")
