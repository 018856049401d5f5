"""Figures in which several models, or several losses, are drawn together: one function each, from arrays to a Figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.analysis.intervals import binomial_interval
from maxsup_hf.analysis.style import (
    GREY,
    HEIGHT,
    WIDTH,
    Axes,
    figure,
    figure_of,
    legend_above,
    shortened,
    styles,
)
from maxsup_hf.metrics import ReliabilityCurve

FEW = 10  # rows of a bin of which little can be said
GAP = -1  # in place of a class: the classes that are not shown
LEAST_BAR = 0.7  # where bars begin on the logarithmic axis, so that a single row is visible


@figure(height=4.3)
def reliability(ax: Axes, curves: Sequence[ReliabilityCurve], names: Sequence[str], losses: Sequence[str | None]) -> None:
    """Reliability diagram: accuracy against confidence with 95 % intervals, and below it the number of rows in each bin.

    Bins of fewer than `FEW` rows are faded, and the lines leave them out.

    Args:
        curves: of each model; empty bins are left out.
        names: of the models.
        losses: as in `styles`.
    """
    grid = figure_of(ax).add_gridspec(2, 1, height_ratios=(5, 2))
    ax.set_subplotspec(grid[0])
    below = figure_of(ax).add_subplot(grid[1], sharex=ax)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (1, 1)), zorder=0)
    for curve, name, style in zip(curves, names, styles(losses), strict=True):
        line: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle}
        many = curve.rows >= FEW
        ax.plot(curve.confidence[many], curve.accuracy[many], marker=style.marker, label=name, **line)
        for chosen, strength in ((many, 0.6), ((curve.rows > 0) & ~many, 0.25)):
            x, y, rows = curve.confidence[chosen], curve.accuracy[chosen], curve.rows[chosen]
            intervals = [binomial_interval(round(share * n), int(n)) for share, n in zip(y, rows, strict=True)]
            ax.vlines(x, *np.reshape(intervals, (-1, 2)).T, color=style.color, alpha=strength, linewidth=1)
            if chosen is not many:
                ax.plot(x, y, marker=style.marker, linestyle="none", color=style.color, alpha=strength)
        below.stairs(curve.rows, curve.edges, baseline=LEAST_BAR, **line)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), ylabel="accuracy")
    ax.tick_params(labelbottom=False)
    most = max(int(curve.rows.max()) for curve in curves)
    below.set(yscale="log", ylim=(LEAST_BAR, 2 * most), xlabel="confidence", ylabel="rows")
    below.axhline(FEW, color=GREY, linewidth=0.8, linestyle=(0, (1, 1)), zorder=0)
    below.locator_params(axis="y", numticks=3)
    below.minorticks_off()
    legend_above(ax, len(names))


@figure(height=3.1)
def within_class(
    ax: Axes,
    values: Sequence[ArrayLike],
    names: Sequence[str],
    losses: Sequence[str | None],
    classes: Sequence[str],
    most: int = 25,
) -> None:
    """Within-class variation 1 − ‖μ_k‖² of each class (see `maxsup_hf.metrics.FeatureGeometry`).

    Of more than `most` classes, those with the least and the greatest variation are shown.

    Args:
        values: (K,) of each model; NaN for a class without a sample.
        names: of the models.
        losses: as in `styles`.
        classes: K names.
    """
    arrays = [np.asarray(v, dtype=np.float64) for v in values]
    order = _by_mean(arrays)
    if len(order) > most:
        seen = order[: len(order) - int(np.isnan(np.stack(arrays)).all(0).sum())]
        order = np.concatenate([seen[: most // 2], [GAP], seen[-(most // 2) :]])
    labels = [f"… {len(classes) - len(order) + 1} more …" if k == GAP else shortened(classes[k]) for k in order]
    places = np.arange(len(order))
    figure_of(ax).set_size_inches(WIDTH, max(HEIGHT, 1 + 0.2 * len(order)))
    for v, name, style in zip(arrays, names, styles(losses), strict=True):
        shown = np.where(order == GAP, np.nan, v[order])
        ax.plot(shown, places, color=style.color, marker=style.marker, linestyle="none", label=name, clip_on=False)
    ax.set(yticks=places, yticklabels=labels, xlabel="within-class variation", xlim=(0, None))
    ax.locator_params(axis="x", nbins=6)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    legend_above(ax, len(names))


def _by_mean(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.intp]:
    """Classes in rising order of their mean over models, those that are NaN for all models last."""
    stacked = np.stack(arrays)
    stacked[:, np.isnan(stacked).all(0)] = np.inf  # nanmean would warn of an empty column
    return np.argsort(np.nanmean(stacked, axis=0), kind="stable")
