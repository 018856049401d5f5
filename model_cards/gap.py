"""Plot how far MaxSup and label smoothing differ in each comparison, ordered by the training error that remains.

    python model_cards/gap.py        # for every comparison with a NAME-beyond.json; writes model_cards/results/gap.png

Where a row is classified correctly, the top logit is the label's and the two penalties are equal, so the losses can differ
only on training errors. Each row is one comparison: the training error averaged over both losses, and the mean difference
MaxSup − label smoothing with its 95 % interval by t over the seeds. Points whose interval leaves out 0 are filled.
"""

from statistics import fmean

from experiments import TITLES
from store import RESULTS
from verdicts import differences, measured

from maxsup_hf.comparison.statistics import interval

SHOWN = {
    "confidence_when_wrong": "confidence when wrong, test",
    "train_feature_within": "within-class variation, training",
    "nll": "NLL, test",
}
SHORT_RUNS = {
    "cifar10": "CIFAR-10, 2 epochs",
    "cifar10fifth": "a fifth of CIFAR-10",
    "vit": "CIFAR-10, small ViT",
    "tinyimagenet100": "Tiny-ImageNet, 100 classes",
    "longtail50": "long tail (50), 3 epochs",
    "longtail100": "long tail (100), 3 epochs",
    "longtail50fifth": "a fifth of long tail (50)",
    "longtail100fifth": "a fifth of long tail (100)",
    "halves": "5,000 of CIFAR-10, 6 epochs",
    "epochs1": "5,000 of CIFAR-10, 1 epoch",
    "epochs3": "5,000 of CIFAR-10, 3 epochs",
    "noise0": "digits",
    "noise10": "digits, 10 % noisy labels",
    "noise40": "digits, 40 % noisy labels",
    "clinc150": "CLINC150, 30 of each intent",
    "sst2": "SST-2",
}
BLUE, GREY = "#0072b2", "#777777"


def points(metric: str) -> dict[str, tuple[float, float, float]]:
    """Comparison -> training error of the two losses, mean difference, and half the width of its 95 % interval; in order of
    the training error."""
    found = {}
    for path in RESULTS.glob("*-beyond.json"):
        name = path.stem.removesuffix("-beyond")
        values = measured(name)
        if "train_accuracy" not in values:
            continue
        error = 1 - fmean(x for loss in ("label_smoothing", "maxsup") for x in values["train_accuracy"][loss].values())
        apart = differences(values, metric, "maxsup", "label_smoothing")
        low, high = interval(apart)
        found[name] = (error, fmean(apart), (high - low) / 2)
    return dict(sorted(found.items(), key=lambda item: (item[1][0], item[0])))


def main() -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    by_metric = {metric: points(metric) for metric in SHOWN}
    first = next(iter(by_metric.values()))
    figure = Figure(figsize=(12, 1.3 + 0.27 * len(first)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    panels = figure.subplots(1, len(SHOWN), sharey=True)
    for axes, (metric, title) in zip(panels, SHOWN.items(), strict=True):
        for y, (_, mean, half) in enumerate(by_metric[metric].values()):
            differs = abs(mean) > half
            look = {"color": BLUE if differs else GREY, "markerfacecolor": BLUE if differs else "white"}
            axes.errorbar(mean, y, xerr=half, fmt="o", markersize=5, capsize=2.5, linewidth=1.2, **look)
        axes.axvline(0, color="#333333", linewidth=0.8, zorder=0)
        axes.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_title(title, fontsize=10.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=9)
        axes.spines[["top", "right", "left"]].set_visible(False)
    names = [f"{(TITLES | SHORT_RUNS)[name]}   {100 * error:.1f} %" for name, (error, _, _) in first.items()]
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    panels[0].set_ylabel("what was trained, and the training error that remains")
    figure.supxlabel(
        "MaxSup − label smoothing: mean and 95 % interval over seeds (filled where it leaves out 0)", fontsize=10
    )
    figure.savefig(RESULTS / "gap.png", dpi=150)


if __name__ == "__main__":
    main()
