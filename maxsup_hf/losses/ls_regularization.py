"""The regularization term of label smoothing alone: an ablation of the MaxSup paper."""

from torch import Tensor

from maxsup_hf.losses._decomposition import gaps
from maxsup_hf.losses._registry import register_loss
from maxsup_hf.losses.maxsup import CITATION


@register_loss("ls_regularization", citation=CITATION)
def ls_regularization(cross_entropy: Tensor, logits: Tensor, labels: Tensor, *, alpha: float = 0.1) -> tuple[Tensor, Tensor]:
    """Label smoothing's regularization alone: cross-entropy + α/M·Σ_{z_m < z_label} (z_label − z_m).

    M is the number of such classes (arXiv 2502.15798, Table 1; 0 where there is none), not K as in `ls_decomposition`.
    """
    gap = gaps(logits, labels)
    return cross_entropy, alpha * gap.above_smaller / gap.smaller.clamp_min(1)
