"""Figures of a comparison: metrics of all runs, and what changed over training, as mean and band over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.analysis.style import WIDTH, Axes, figure, figure_of, legend_above, loss_order, styles
from maxsup_hf.losses._labels import loss_label

TICKS = 5  # at most so many intervals on the axis of a narrow figure, so that its numbers do not touch


class Band(NamedTuple):
    """A quantity over training, of the runs of one loss.

    Attributes:
        x: where it was logged.
        mean: over the runs.
        sd: standard deviation over the runs (n − 1); NaN for a single run.
    """

    x: NDArray[Any]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]


def band(x: ArrayLike, runs: ArrayLike) -> Band:
    """
    Args:
        x: (T,).
        runs: (runs, T), the values of each run.
    """
    values = np.asarray(runs, dtype=np.float64)
    sd = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(values.shape[1:], np.nan)
    return Band(np.asarray(x), values.mean(axis=0), sd)


@figure()
def curves(ax: Axes, bands: Mapping[str, Band], labels: tuple[str, str], least: float | None = None) -> None:
    """A quantity over training: a line for the mean over the runs of each loss, in a band of a standard deviation.

    Args:
        bands: loss -> its runs.
        labels: of the axes.
        least: the lowest value that the quantity can take, where the band ends.
    """
    losses = loss_order(list(bands))
    for loss, style in zip(losses, styles(losses), strict=True):
        x, mean, sd = bands[loss]
        every = max(1, len(x) // 8)
        line: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle, "marker": style.marker}
        ax.plot(x, mean, label=loss_label(loss), markevery=every, **line)
        low = mean - sd if least is None else np.maximum(mean - sd, least)
        ax.fill_between(x, low, mean + sd, color=style.color, alpha=0.15, linewidth=0)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.margins(x=0.03)
    _few_ticks(ax, integers=all(np.issubdtype(of.x.dtype, np.integer) for of in bands.values()))
    legend_above(ax, len(losses))


@figure()
def spread(ax: Axes, values: Mapping[str, Sequence[float]], label: str) -> None:
    """A metric of several runs of each loss: a mark for each run; of several, mean ± standard deviation next to them.

    Args:
        values: loss -> its runs' values, NaN for a run without one.
        label: of the metric.
    """
    losses = loss_order(list(values))
    figure_of(ax).set_size_inches(WIDTH, 0.8 + 0.38 * len(losses))
    for i, (loss, style) in enumerate(zip(losses, styles(losses), strict=True)):
        found = np.array([v for v in values[loss] if v == v])
        runs: dict[str, Any] = {"color": style.color, "markerfacecolor": "none", "linestyle": "none", "alpha": 0.8}
        place = i - 0.17 if len(found) > 1 else i
        ax.plot(found, np.full(len(found), place), marker=style.marker, **runs)
        if len(found) > 1:
            ax.errorbar(found.mean(), i + 0.17, xerr=found.std(ddof=1), fmt=style.marker, color=style.color, capsize=3)
    names = [loss_label(loss) for loss in losses]
    ax.set(yticks=np.arange(len(losses)), yticklabels=names, xlabel=label, ylim=(len(losses) - 0.5, -0.5))
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    _few_ticks(ax)


def _few_ticks(ax: Axes, integers: bool = False) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(TICKS - 1, integer=integers, min_n_ticks=2))
    ax.ticklabel_format(axis="x", useOffset=False, style="plain")
    if integers:
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
