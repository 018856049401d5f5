"""Draw the figures of the documentation: `python docs/figures.py`. Needs `pip install -e '.[analysis]'`.

`penalties.png` shows what label smoothing and MaxSup add to cross-entropy, and what that does to the margin, for one row of
ten logits: the label's is the margin, its strongest rival's is 0, the other eight are −2. Values and gradients are those of
the losses of this package.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from maxsup_hf import create_loss

HERE = Path(__file__).parent / "figures"
CLASSES, OTHERS, ALPHA = 10, -2.0, 0.1
# Colours of Okabe & Ito (2008), as in the reports; where the lines meet, the second is seen on the first.
LOSSES = {
    "maxsup": ("MaxSup", {"color": "#0072B2", "linestyle": "-", "linewidth": 4}),
    "label_smoothing": ("label smoothing", {"color": "#E69F00", "linestyle": "--", "linewidth": 1.8}),
}
LOOK = {
    "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "legend.frameon": False, "axes.spines.top": False,
    "axes.spines.right": False, "figure.constrained_layout.use": True,
}  # fmt: skip


class Curves(NamedTuple):
    """Of a loss, at each margin, over α: what it adds to cross-entropy, and how a step on that alone moves the margin."""

    penalty: NDArray[np.float64]
    push: NDArray[np.float64]


def curves(loss: str, margins: NDArray[np.float64]) -> Curves:
    logits = torch.full((len(margins), CLASSES), OTHERS, dtype=torch.float64)
    logits[:, 0], logits[:, 1] = torch.from_numpy(margins), 0.0
    logits.requires_grad_()
    labels = torch.zeros(len(margins), dtype=torch.long)
    kwargs = {"alpha": ALPHA, "alpha_end": None}
    added = create_loss(loss, **kwargs)(logits, labels, reduction="none")
    added = added - create_loss("cross_entropy")(logits, labels, reduction="none")
    (slope,) = torch.autograd.grad(added.sum(), logits)
    # A step of gradient descent moves the label's logit and the rival's, each against its own slope.
    push = slope[:, 1] - slope[:, 0]
    return Curves(added.detach().numpy() / ALPHA, push.numpy() / ALPHA)


def draw(path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    sides = (np.linspace(-4, -1e-6, 5), np.linspace(1e-6, 4, 5))  # all is straight but at 0, where the top changes
    with rc_context(LOOK):
        figure = Figure(figsize=(8.4, 2.9), facecolor="white")
        left, right = figure.subplots(1, 2)
        for loss, (name, look) in LOSSES.items():
            for i, margins in enumerate(sides):
                found = curves(loss, margins)
                left.plot(margins, found.penalty, label=name if i == 0 else None, **look)
                right.plot(margins, found.push, **look)
        for axes, low in ((left, -2.4), (right, -1.6)):
            axes.axvspan(-4, 0, color="#777777", alpha=0.12, linewidth=0)
            axes.axhline(0, color="#777777", linewidth=0.6)
            axes.set_xlim(-4, 4)
            axes.set_ylim(bottom=low)
            axes.set_xlabel("margin: label's logit − greatest other logit")
            axes.text(-0.15, low + 0.1, "prediction wrong", color="#555555", ha="right")
            axes.text(0.15, low + 0.1, "prediction right", color="#555555")
        left.set_title("penalty / α, added to cross-entropy")
        left.legend(loc="upper left")
        right.set_title("what a step of gradient descent does to the margin")
        right.set_ylim(top=1.6)
        right.set_yticks([-1, 0, 1], ["−α: shrinks", "0", "+α: grows"])
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    draw(HERE / "penalties.png")
