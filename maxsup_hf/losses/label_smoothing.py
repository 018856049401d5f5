"""Label smoothing (Szegedy et al., 2016), over all classes or over the other classes only."""

from typing import Any

from torch import Tensor

from maxsup_hf.losses._registry import register_loss

CITATION = """@inproceedings{szegedy2016rethinking,
  title={Rethinking the Inception Architecture for Computer Vision},
  author={Szegedy, Christian and Vanhoucke, Vincent and Ioffe, Sergey and Shlens, Jon and Wojna, Zbigniew},
  booktitle={CVPR},
  year={2016},
  note={arXiv:1512.00567}
}"""


def share(classes: Any, *, alpha: Any, over: str) -> Any:
    """The share of the label that is spread evenly over all K classes."""
    return alpha if over == "K" else alpha * classes / (classes - 1).clamp_min(1)


@register_loss(
    "label_smoothing",
    bounds={"alpha": (0, 1)},
    choices={"over": ("K", "K-1")},
    citation=CITATION,
    replaces_target=True,
    smoothing=share,
)
def label_smoothing(
    cross_entropy: Tensor, label: Tensor, mean: Tensor, classes: Tensor, *, alpha: float = 0.1, over: str = "K"
) -> tuple[Tensor, Tensor]:
    """Label smoothing: cross-entropy + α(z_label − mean z).

    `over="K"` spreads α over all K classes, as torch, timm and the paper do. `over="K-1"` spreads it over the other classes
    only, as fairseq does, which equals `over="K"` with α·K/(K−1). With class weights the loss is torch's
    `F.cross_entropy(weight=w, label_smoothing=α)`, in which each smoothed class has its own weight.
    """
    return cross_entropy, share(classes, alpha=alpha, over=over) * (label - mean)
