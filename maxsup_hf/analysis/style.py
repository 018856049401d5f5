"""How figures look: colours, line styles and markers of losses, size, and saving.

Colours are those of Okabe & Ito (2008), which can be told apart with any colour vision; line styles, markers and hatches
carry the same information in greyscale print. A loss looks the same in every figure, and the order of losses is the same.
Figures are small, 4.2 inches wide: the report sets them side by side where there is room, and below each other on a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, cast

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("figures need matplotlib, and maps of images captum: pip install matplotlib captum") from error

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#777777"
WIDTH, HEIGHT = 4.2, 3.1  # inches
LOOK: Any = {
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "maxsup_hf",  # the same figure is the same file
    "figure.constrained_layout.use": True,
}


class Style(NamedTuple):
    """How one loss, or one model, is drawn in all figures."""

    color: str
    linestyle: Any
    marker: str
    hatch: str


LOSS_STYLES: dict[str, Style] = {
    "cross_entropy": Style(BLACK, "-", "o", ""),
    "label_smoothing": Style(ORANGE, "--", "s", "//"),
    "online_label_smoothing": Style(SKY, "-.", "^", "\\\\"),
    "zipf_label_smoothing": Style(PURPLE, ":", "v", ".."),
    "maxsup": Style(BLUE, "-", "D", "xx"),
    "logit_penalty": Style(GREEN, "--", "P", "++"),
    "confidence_penalty": Style(VERMILION, "-.", "X", "oo"),
    "focal": Style(VERMILION, ":", "<", "--"),
    "poly": Style(GREEN, ":", ">", "||"),
    "z_loss": Style(PURPLE, "--", "h", "**"),
    "logit_norm": Style(SKY, ":", "p", "OO"),
    "ls_regularization": Style(ORANGE, ":", "8", "///"),
    "ls_error_amplification": Style(ORANGE, "-.", "*", "\\\\\\"),
}
# For the user's own losses, and models whose loss is not known. There is no yellow, which is hard to see on white; line and
# marker differ from one to the next, for greyscale.
OTHER_MARKERS = "dH1*+."
OTHER_STYLES = tuple(
    Style(
        (GREY, GREEN, PURPLE, VERMILION, SKY)[i % 5], ("-", "--", ":")[i % 3], OTHER_MARKERS[i % 6], ("/", "\\", ".")[i % 3]
    )
    for i in range(15)
)
RIGHT, WRONG = Style(BLUE, "-", "o", ""), Style(VERMILION, "--", "X", "////")
CLASS_STYLES = (Style(BLUE, "-", "o", ""), Style(ORANGE, "--", "s", ""), Style(BLACK, ":", "^", ""))


def loss_order(losses: Sequence[str]) -> list[str]:
    """Distinct names of losses in the order of all figures and tables; the user's own losses come last, by name."""
    ours = list(LOSS_STYLES)
    return sorted(set(losses), key=lambda name: (ours.index(name) if name in LOSS_STYLES else len(ours), name))


def styles(losses: Sequence[str | None]) -> list[Style]:
    """A style for each of several models, by the losses that they were trained with.

    Each loss has its own style; further models with the same loss keep the colour, with a different line and marker.

    Args:
        losses: name of each model's loss, `None` if it is not known.
    """
    found: list[Style] = []
    others = iter(OTHER_STYLES * (1 + len(losses) // len(OTHER_STYLES)))
    for i, loss in enumerate(losses):
        before = 0 if loss is None else list(losses[:i]).count(loss)
        style = LOSS_STYLES.get(loss or "")
        if style is None:
            same = [found[k] for k in range(i) if loss is not None and losses[k] == loss]
            style = same[0] if same else next(others)
        if before:
            dashes = (0, (3 + 2 * before, 1, 1, 1))
            style = Style(style.color, dashes, OTHER_MARKERS[i % 6], style.hatch + "-" * before)
        found.append(style)
    return found


P = ParamSpec("P")


def figure(
    width: float = WIDTH, height: float = HEIGHT, **axes: Any
) -> Callable[[Callable[Concatenate[Axes, P], None]], Callable[P, Figure]]:
    """Decorator that turns a function that draws on an Axes into one that returns a Figure in the common look.

    Args:
        width, height: inches.
        axes: arguments of `Figure.add_subplot`.
    """

    def decorate(draw: Callable[Concatenate[Axes, P], None]) -> Callable[P, Figure]:
        @wraps(draw)
        def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
            with rc_context(LOOK):
                fig = Figure(figsize=(width, height))
                draw(fig.add_subplot(**axes), *args, **kwargs)
                return fig

        return drawn

    return decorate


def save(fig: Figure, folder: str | Path, name: str) -> Path:
    """Write `name.png` (200 dpi) and `name.svg` into `folder`, which is created. Returns the path of the SVG."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with rc_context(LOOK):
        fig.savefig(folder / f"{name}.png", dpi=200, facecolor="auto")
        fig.savefig(folder / f"{name}.svg", dpi=200, facecolor="auto", metadata={"Date": None})
    return folder / f"{name}.svg"


def figure_of(ax: Axes) -> Figure:
    return cast(Figure, ax.figure)


def legend_above(ax: Axes, count: int) -> None:
    """A legend of `count` entries above the axes, in the middle of the figure: labels of ticks may take half of it."""
    if count:
        handles, labels = ax.get_legend_handles_labels()
        figure_of(ax).legend(handles, map(shortened, labels), loc="outside upper center", ncols=min(count, 2))


def shortened(name: str, most: int = 22) -> str:
    """A name of at most so many characters: of a longer one the beginning and the end, in which similar names differ."""
    if len(name) <= most:
        return name
    end = most // 3
    return f"{name[: most - 1 - end]}…{name[-end:]}"
