"""Check the paper's claims against every comparison in model_cards/results.

    python model_cards/verdicts.py        # writes model_cards/results/verdicts.md

Two losses are compared by the mean over seeds of the difference of their values. A claim holds, or is contradicted, if that
mean is larger than two standard errors and a paired t-test gives p < 0.05. Otherwise it is undecided.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from experiments import TITLES
from labels import metric_label
from store import RESULTS, comparisons, read

from maxsup_hf.comparison.statistics import LEVEL, paired_p
from maxsup_hf.losses._labels import loss_label
from maxsup_hf.output.tables import Table, markdown

Values = Mapping[str, Mapping[str, Mapping[str, float]]]  # metric -> loss -> seed -> value
# (first loss, second loss, metric, sign of first − second, the claim and where arXiv 2502.15798 makes it)
CLAIMS = [
    ("maxsup", "label_smoothing", "accuracy", 1, "MaxSup is more accurate than label smoothing (Table 1)"),
    ("maxsup", "cross_entropy", "accuracy", 1, "MaxSup is more accurate than cross-entropy (Table 1)"),
    ("label_smoothing", "cross_entropy", "feature_within", -1,
     "label smoothing shrinks within-class variation (Table 2)"),
    ("label_smoothing", "cross_entropy", "train_feature_within", -1,
     "label smoothing shrinks within-class variation (Table 2), on training data"),
    ("maxsup", "label_smoothing", "feature_within", 1,
     "MaxSup keeps more within-class variation than label smoothing (Table 2)"),
    ("maxsup", "label_smoothing", "train_feature_within", 1,
     "MaxSup keeps more within-class variation than label smoothing (Table 2), on training data"),
    ("maxsup", "cross_entropy", "feature_r2", 1, "MaxSup separates classes better than cross-entropy (Table 2)"),
    ("maxsup", "cross_entropy", "train_feature_r2", 1,
     "MaxSup separates classes better than cross-entropy (Table 2), on training data"),
    ("label_smoothing", "cross_entropy", "probe_accuracy", -1,
     "features of label smoothing transfer worse than those of cross-entropy (Table 3)"),
    ("maxsup", "label_smoothing", "probe_accuracy", 1,
     "features of MaxSup transfer better than those of label smoothing (Table 3)"),
    ("maxsup", "label_smoothing", "confidence_when_wrong", -1,
     "MaxSup is less confident than label smoothing when it is wrong (Section 3)"),
    ("ls_error_amplification", "cross_entropy", "confidence_when_wrong", 1,
     "the error-amplification term alone raises confidence in errors (Section 3)"),
    ("ls_regularization", "cross_entropy", "accuracy", 1, "the regularization term alone improves accuracy (Table 1)"),
    ("ls_error_amplification", "cross_entropy", "accuracy", -1,
     "the error-amplification term alone lowers accuracy (Table 1)"),
]  # fmt: skip
VERDICTS = ("holds", "undecided", "contradicted")


def measured(name: str) -> Values:
    """The values in a comparison's table, and those of NAME-beyond.json if it exists. Where each loss searched for its best
    α, the values are those at that α."""
    tables = read(RESULTS / f"{name}.json")["tables"]
    values = {metric: of["values"] for metric, of in tables.get("chosen", tables["shared"]).items()}
    beyond = RESULTS / f"{name}-beyond.json"
    return values | read(beyond)["values"] if beyond.exists() else values


def differences(values: Values, metric: str, one: str, other: str) -> list[float]:
    """one − other for each seed that both losses have; empty if the metric or a loss is missing."""
    first, second = (values.get(metric, {}).get(loss, {}) for loss in (one, other))
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def verdict(differences: Sequence[float], sign: int) -> str:
    mean, spread = fmean(differences), 2 * stdev(differences) / len(differences) ** 0.5
    if not abs(mean) > spread or not paired_p(differences, "t") < LEVEL:
        return "undecided"
    return "holds" if mean * sign > 0 else "contradicted"


def text() -> str:
    """The claims on the experiments at full accuracy, and below them on the short runs."""
    names = list(comparisons())
    parts = {
        "At the accuracy that these networks reach": [name for name in TITLES if name in names],
        "Short runs": [name for name in names if name not in TITLES],
    }
    return "\n\n".join(f"## {title}\n\n{_of(of)}" for title, of in parts.items() if of) + "\n"


def _of(names: Sequence[str]) -> str:
    """Two tables: the comparisons in which each claim holds or not, and the differences behind these verdicts."""
    summary, details = [], []
    every = {name: measured(name) for name in names}
    for one, other, metric, sign, claim in CLAIMS:
        judged: dict[str, list[str]] = {said: [] for said in VERDICTS}
        compared = f"{metric_label(metric)}: {loss_label(one)} − {loss_label(other)}"
        for name, values in every.items():
            found = differences(values, metric, one, other)
            if len(found) < 2:
                continue
            said = verdict(found, sign)
            first_row = not any(judged.values())
            spread = f"{fmean(found):+.4f} ± {stdev(found):.4f}"
            details.append([claim if first_row else "", name, compared, spread, said])
            judged[said].append(name)
        if any(judged.values()):
            summary.append([claim, *(", ".join(of) for of in judged.values())])
    tables = [
        Table(["claim of the paper", *VERDICTS], summary),
        Table(["claim", "comparison", "what is compared", "mean difference ± standard deviation", "verdict"], details),
    ]
    return "\n\n".join(markdown(table).replace("---:", "---") for table in tables)  # words, so left-aligned


if __name__ == "__main__":
    (RESULTS / "verdicts.md").write_text(text(), encoding="utf-8")
    print(text(), end="")
