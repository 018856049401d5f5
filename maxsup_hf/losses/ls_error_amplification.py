"""The error amplification term of label smoothing alone: an ablation of the MaxSup paper."""

from torch import Tensor

from maxsup_hf.losses._decomposition import gaps
from maxsup_hf.losses._registry import register_loss
from maxsup_hf.losses.maxsup import CITATION


@register_loss("ls_error_amplification", choices={"of": ("mean", "top")}, citation=CITATION, weighted_penalty=True)
def ls_error_amplification(
    cross_entropy: Tensor,
    label: Tensor,
    top: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.1,
    of: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Label smoothing's error amplification alone: cross-entropy + α/N·Σ_{z_n > z_label} (z_label − z_n).

    N is the number of such classes (arXiv 2502.15798, Table 1; 0 where there is none). `of="top"` is the table's other
    form, α(z_label − max z). Both are at most 0, so class weights scale them along with the cross-entropy, which keeps the
    sum bounded below.
    """
    if of == "top":
        return cross_entropy, alpha * (label - top)
    gap = gaps(logits, labels)
    return cross_entropy, alpha * gap.below_larger / gap.larger.clamp_min(1)
