"""The focal loss of Lin et al. (2017): gives less weight to rows that are predicted confidently."""

import torch
from torch import Tensor

from maxsup_hf.losses._registry import register_loss

CITATION = """@inproceedings{lin2017focal,
  title={Focal Loss for Dense Object Detection},
  author={Lin, Tsung-Yi and Goyal, Priya and Girshick, Ross and He, Kaiming and Doll{\\'a}r, Piotr},
  booktitle={ICCV},
  year={2017},
  note={arXiv:1708.02002}
}"""


@register_loss("focal", citation=CITATION, replaces_target=True)
def focal(cross_entropy: Tensor, *, gamma: float = 2.0, detach: bool = False) -> tuple[Tensor, Tensor]:
    """Focal loss: (1 − p)^γ·cross-entropy, p = exp(−cross-entropy) the probability of the label.

    `detach=True` stops the gradient of the factor, as some public code does: the value is that of focal loss, the gradient
    that of a weighted cross-entropy.
    """
    # 1 − p without cancellation; the floor keeps the derivative of a fractional power finite at p = 1
    wrong = (-torch.expm1(-cross_entropy)).clamp_min(torch.finfo(cross_entropy.dtype).tiny)
    factor = wrong**gamma
    return (factor.detach() if detach else factor) * cross_entropy, cross_entropy.new_zeros(())
