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
    """What part of the label is spread evenly over all K classes."""
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

    `over="K"` spreads α over all K classes, as torch, timm and the paper do; `over="K-1"` over the others only, as fairseq
    does, which is the former with α·K/(K−1). With class weights it is torch's
    `F.cross_entropy(weight=w, label_smoothing=α)`: each smoothed class counts with its own weight.
    """
    return cross_entropy, share(classes, alpha=alpha, over=over) * (label - mean)
