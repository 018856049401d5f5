"""Poly-1 (Leng et al., 2022): cross-entropy with a different first coefficient of its polynomial expansion."""

import torch
from torch import Tensor

from maxsup_hf.losses._registry import register_loss

CITATION = """@inproceedings{leng2022polyloss,
  title={PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions},
  author={Leng, Zhaoqi and Tan, Mingxing and Liu, Chenxi and Cubuk, Ekin Dogus and Shi, Jay and Cheng, Shuyang
    and Anguelov, Dragomir},
  booktitle={ICLR},
  year={2022},
  note={arXiv:2204.12511}
}"""


@register_loss("poly", bounds={"epsilon": (-1, float("inf"))}, citation=CITATION, replaces_target=True)
def poly(cross_entropy: Tensor, *, epsilon: float = 1.0) -> tuple[Tensor, Tensor]:
    """Poly-1: cross-entropy + ε(1 − p), p = exp(−cross-entropy) the probability of the label."""
    return cross_entropy - epsilon * torch.expm1(-cross_entropy), cross_entropy.new_zeros(())
