from torch import Tensor

from maxsup_hf.losses._registry import register_loss

CITATION = """@inproceedings{szegedy2016rethinking,
  title={Rethinking the Inception Architecture for Computer Vision},
  author={Szegedy, Christian and Vanhoucke, Vincent and Ioffe, Sergey and Shlens, Jon and Wojna, Zbigniew},
  booktitle={CVPR},
  year={2016},
  note={arXiv:1512.00567}
}"""


@register_loss("label_smoothing", bounds={"alpha": (0, 1)}, citation=CITATION)
def label_smoothing(cross_entropy: Tensor, label: Tensor, mean: Tensor, *, alpha: float = 0.1) -> tuple[Tensor, Tensor]:
    """Label smoothing over all K classes: cross-entropy + α(z_label − mean z)."""
    return cross_entropy, alpha * (label - mean)
