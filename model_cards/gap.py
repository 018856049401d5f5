"""Plot how far MaxSup and label smoothing differ against the training error that remains.

    python model_cards/gap.py        # for every comparison with a NAME-beyond.json; writes model_cards/results/gap.png

Where a row is classified correctly, the top logit is the label's and the two penalties are equal, so the losses can differ
only on training errors. Each point is one comparison: the training error averaged over both losses, and the mean difference
MaxSup − label smoothing with its standard deviation over seeds.
"""

from statistics import fmean, stdev

import numpy as np
from store import RESULTS
from verdicts import differences, measured

SHOWN = {
    "confidence_when_wrong": "confidence when wrong, test",
    "train_feature_within": "within-class variation, training",
    "nll": "NLL, test",
}


def points(metric: str) -> dict[str, tuple[float, float, float]]:
    """Comparison -> training error of the two losses, mean and standard deviation of the difference."""
    found = {}
    for path in sorted(RESULTS.glob("*-beyond.json")):
        name = path.stem.removesuffix("-beyond")
        values = measured(name)
        error = 1 - fmean(x for loss in ("label_smoothing", "maxsup") for x in values["train_accuracy"][loss].values())
        apart = differences(values, metric, "maxsup", "label_smoothing")
        found[name] = (error, fmean(apart), stdev(apart))
    return found


def main() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
        for name, (error, mean, spread) in points(metric).items():
            axes.errorbar(error, mean, spread, fmt="o", capsize=3, color="#0072b2")
            axes.annotate(name, (error, mean), xytext=(3, 3), textcoords="offset points", fontsize=6, rotation=45)
        axes.axhline(0, color="#666666", linewidth=0.8)
        axes.set(xlabel="training error (square root scale)", title=title)
        axes.set_xscale("function", functions=(np.sqrt, np.square))
        axes.set_xlim(0, 1)
    figure.supylabel("MaxSup − label smoothing", fontsize=9)
    figure.savefig(RESULTS / "gap.png", dpi=150)


if __name__ == "__main__":
    main()
