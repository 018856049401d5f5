"""Figures of one model, and panels of an image: one function each, from arrays to a Figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.analysis.style import (
    CLASS_STYLES,
    LOOK,
    RIGHT,
    WIDTH,
    WRONG,
    Axes,
    Figure,
    figure,
    figure_of,
    rc_context,
    shortened,
)

OVER_PHOTOS = "#808080"  # of text without a background, on a white page or a dark one
TITLE, PANEL_TITLE = 36, 26  # characters that fit above a figure, and above a panel of half its width
FIT_A_PHONE, WIDE = 10, 6.6  # classes of a confusion matrix of ordinary width, and the width in inches of larger ones


class HistogramAxes(NamedTuple):
    """Axes that several histograms share: edges of the bins, and the greatest share of a bin."""

    edges: NDArray[np.float64]
    highest: float


def histogram_axes(
    values: Sequence[ArrayLike], right: Sequence[ArrayLike], limits: tuple[float, float] | None = None
) -> HistogramAxes:
    """The axes for the histograms of several models.

    Args:
        values, right: (N,) of each model, as in `outcome_histogram`.
        limits: of the values. Default: their least and greatest.
    """
    groups = []
    for v, r in zip(map(np.asarray, values), right, strict=True):
        is_right = np.asarray(r, dtype=bool)
        groups += [group for group in (v[is_right], v[~is_right]) if len(group)]
    low, high = limits or (min(float(group.min()) for group in groups), max(float(group.max()) for group in groups))
    # As many bins as the smallest histogram can fill: a few wrong rows in many bins look like noise.
    bins = int(np.clip(min(len(group) for group in groups) ** 0.5, 10, 30))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    return HistogramAxes(edges, max(float(_shares(group, edges).max()) for group in groups))


@figure()
def outcome_histogram(
    ax: Axes, values: ArrayLike, right: ArrayLike, label: str, title: str = "", shared: HistogramAxes | None = None
) -> None:
    """How a quantity is distributed over the rows predicted right, and over those predicted wrong.

    Each histogram shows shares of its own rows, so that few wrong rows are as visible as many right ones.

    Args:
        values: (N,).
        right: (N,) booleans.
        label: what the values are.
        title: the model's name.
        shared: axes of all models. Default: those of this one.
    """
    v, is_right = np.asarray(values, dtype=np.float64), np.asarray(right, dtype=bool)
    edges, highest = shared or histogram_axes([v], [is_right])
    for style, name, chosen in ((RIGHT, "right", v[is_right]), (WRONG, "wrong", v[~is_right])):
        if not len(chosen):
            ax.plot([], [], color=style.color, label=f"{name}: none")
            continue
        look: dict[str, Any] = {
            "edgecolor": style.color,
            "linestyle": style.linestyle,
            "hatch": style.hatch,
            "linewidth": 1.2,
        }
        face = "none" if style.hatch else style.color + "40"
        ax.stairs(_shares(chosen, edges), edges, fill=True, facecolor=face, label=f"{name} ({len(chosen):,})", **look)
        ax.axvline(chosen.mean(), color=style.color, linestyle=style.linestyle, linewidth=1)
    margin = 0.02 * (edges[-1] - edges[0])
    limits = (edges[0] - margin, edges[-1] + margin)
    ax.set(xlabel=label, ylabel="share of these rows", xlim=limits, ylim=(0, 1.05 * highest))
    ax.locator_params(axis="x", nbins=6)
    ax.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2,
        title=shortened(title, TITLE),
        title_fontproperties={"size": 9},
    )


@figure()
def confusion(ax: Axes, counts: ArrayLike, names: Sequence[str], title: str = "") -> None:
    """Confusion matrix: how many rows of each label were predicted as each class, shaded by their share of the label's rows.

    Args:
        counts: (K, K); row: label, column: prediction.
        names: of the K classes.
        title: the model's name.
    """
    table = np.asarray(counts)
    width = WIDTH if len(names) <= FIT_A_PHONE else WIDE
    figure_of(ax).set_size_inches(width, min(width, 1.2 + 0.4 * len(names)))
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    # The square root makes a few wrong rows visible.
    ax.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in zip(*table.nonzero(), strict=True):
        color = "white" if shares[i, j] > 0.4 else "black"
        ax.text(j, i, _count(table[i, j]), ha="center", va="center", fontsize=7, color=color)
    places, labels = np.arange(len(names)), [shortened(name, 16) for name in names]
    ax.set(
        xticks=places, yticks=places, yticklabels=labels, xlabel="prediction", ylabel="label", title=shortened(title, TITLE)
    )
    beside = max(map(len, labels)) * len(labels) < 8 * width
    ax.set_xticklabels(labels, rotation=0 if beside else 90)
    ax.tick_params(length=0)


@figure(height=3.6)
def class_plane(
    ax: Axes,
    points: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    templates: ArrayLike | None = None,
    title: str = "",
) -> None:
    """Features of three classes, projected on the plane through the classes' templates (Müller et al. 2019, Fig. 1).

    Args:
        points: (N, 2), from `maxsup_hf.analysis.project`.
        labels: (N,) integers in [0, 3).
        classes: three names.
        templates: (3, 2), the classifier's rows in the same coordinates, marked with a white edge.
        title: the model's name.
    """
    xy, y = np.asarray(points, dtype=np.float64), np.asarray(labels)
    for k, (name, style) in enumerate(zip(classes, CLASS_STYLES, strict=True)):
        look: dict[str, Any] = {"s": 12, "alpha": 0.8, "linewidths": 0.7, "edgecolors": style.color, "rasterized": True}
        face = style.color if k == 0 else "none"
        ax.scatter(*xy[y == k].T, marker=style.marker, facecolors=face, label=shortened(name, 16), **look)
    if templates is not None:
        for place, style in zip(np.asarray(templates), CLASS_STYLES, strict=True):
            ax.plot(*place, marker=style.marker, color=style.color, markersize=9, markeredgecolor="white", zorder=3)
    ax.set(title=shortened(title, TITLE), xticks=[], yticks=[])
    ax.set_aspect("equal", adjustable="datalim")
    for spine in ax.spines.values():
        spine.set(visible=True, color="#bbbbbb")
    figure_of(ax).legend(loc="outside lower center", ncols=3, handletextpad=0.1, columnspacing=0.8)


def heat_panels(
    image: ArrayLike,
    heats: Sequence[ArrayLike | None],
    titles: Sequence[str],
    places: Sequence[Sequence[float] | None] | None = None,
) -> Figure:
    """An image, and a copy for each model with the model's attribution map laid over it.

    Args:
        image: (H, W, 3) in [0, 1].
        heats: (h, w) of each model, at least 0, of any scale; `None` for a model without a map.
        titles: of the image, and of each model.
        places: where each map lies in the image: left, right, bottom, top, in pixels. Default: all over it.
    """
    pixels = np.asarray(image, dtype=np.float64)
    height, width = pixels.shape[:2]
    whole = (0, width, height, 0)
    with rc_context(LOOK):
        columns = min(len(titles), 2)
        rows = -(-len(titles) // columns)
        lines = 1 + max(title.count("\n") for title in titles)
        panel = WIDTH / columns * min(max(height / width, 0.4), 2)
        # No background: photographs keep their colours on a dark page.
        fig = Figure(figsize=(WIDTH, rows * (panel + 0.15 + 0.15 * lines)), facecolor="none")
        axes = np.atleast_1d(fig.subplots(rows, columns)).ravel()
        for ax in axes:
            ax.set_axis_off()
        # A grey image under a map that is lighter where it is greater, so that it reads in greyscale print too.
        grey = np.repeat(pixels.mean(-1, keepdims=True), 3, axis=-1)
        places = places or [None] * len(heats)
        for ax, heat, title, place in zip(axes, [None, *heats], titles, [None, *places], strict=False):
            ax.set_title(
                "\n".join(shortened(line, PANEL_TITLE) for line in title.split("\n")), fontsize=7.5, color=OVER_PHOTOS
            )
            ax.imshow(pixels if heat is None else grey, extent=whole, interpolation="nearest")
            if heat is not None:
                h = np.asarray(heat, dtype=np.float64)
                h = h / h.max() if h.max() > 0 else h
                ax.imshow(h, cmap="cividis", alpha=0.6, vmin=0, vmax=1, extent=place or whole, interpolation="bilinear")
            ax.set(xlim=(0, width), ylim=(height, 0))
        return fig


def _count(rows: int) -> str:
    if rows < 10_000:
        return str(rows)
    return f"{rows / 1000:.0f}k" if rows < 10**6 else f"{rows / 10**6:.0f}M"


def _shares(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of the values in each bin; what lies outside the edges is put into the first bin or the last."""
    return np.histogram(np.clip(values, *edges[[0, -1]]), edges)[0] / len(values)
