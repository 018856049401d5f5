"""LogitNorm (Wei et al., 2022): cross-entropy of logits scaled to a fixed norm."""

import torch
from torch import Tensor

from maxsup_hf.losses._registry import register_loss
from maxsup_hf.ops.autograd import statistics

CITATION = """@inproceedings{wei2022mitigating,
  title={Mitigating Neural Network Overconfidence with Logit Normalization},
  author={Wei, Hongxin and Xie, Renchunzi and Cheng, Hao and Feng, Lei and An, Bo and Li, Yixuan},
  booktitle={ICML},
  year={2022},
  note={arXiv:2205.09310}
}"""


@register_loss(
    "logit_norm", bounds={"tau": (1e-6, float("inf"))}, citation=CITATION, replaces_target=True, shift_invariant=False
)
def logit_norm(logits: Tensor, target: Tensor, square: Tensor, *, tau: float = 0.04) -> tuple[Tensor, Tensor]:
    """LogitNorm: cross-entropy of z / (τ(‖z‖ + 1e-7))."""
    # At a row of zeros the norm is not differentiable: both `where` keep NaN out of its gradient.
    norm = square.where(square > 0, 1).sqrt().where(square > 0, 0)
    masked = logits == -torch.inf
    scaled = logits.masked_fill(masked, 0) / ((norm + 1e-7) * tau)[:, None]
    target_term = statistics(scaled.masked_fill(masked, -torch.inf), target, ("cross_entropy",))["cross_entropy"]
    return target_term, target_term.new_zeros(())
