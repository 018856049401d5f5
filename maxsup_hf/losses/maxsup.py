"""MaxSup (Zhou et al., 2025), as a registered loss and as a function like torch's cross_entropy."""

import torch
from torch import Tensor

from maxsup_hf.losses._loss import create_loss
from maxsup_hf.losses._registry import register_loss

CITATION = """@inproceedings{zhou2025maxsup,
  title={MaxSup: Overcoming Representation Collapse in Label Smoothing},
  author={Zhou, Yuxuan and Li, Heng and Cheng, Zhi-Qi and Yan, Xudong and Dong, Yifei and Fritz, Mario and Keuper, Margret},
  booktitle={Advances in Neural Information Processing Systems},
  year={2025},
  note={arXiv:2502.15798}
}"""


@register_loss("maxsup", alpha_end=0.2, citation=CITATION)
def maxsup(cross_entropy: Tensor, top: Tensor, mean: Tensor, *, alpha: float = 0.1) -> tuple[Tensor, Tensor]:
    """MaxSup: cross-entropy + α(max z − mean z)."""
    return cross_entropy, alpha * (top - mean)


def maxsup_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    alpha: float = 0.1,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """MaxSup with the signature and layouts of `torch.nn.functional.cross_entropy`, with `alpha` for `label_smoothing`.

    Source: arXiv 2502.15798, Definition 3.5. Ties for the top logit go to the first index.

    Args:
        input: logits of shape (K,), (N, K) or (N, K, d1, …), classes in dimension 1; floating.
        target: integer class indices of shape (), (N,) or (N, d1, …), or class probabilities of the shape of `input`.
        weight: (K,) class weights of the cross-entropy term and its normalisation; the penalty is unweighted.
        alpha: strength of the penalty, constant, finite and not negative. Default 0.1.
        ignore_index: target value of ignored rows. Default −100.
        reduction: `"mean"` (over rows that are not ignored; 0 if all are), `"sum"` or `"none"`.

    Returns:
        0-dim loss, or for `"none"` one value per row, in the shape of integer targets. float32 (float64 for float64 input).

    Raises:
        TypeError, ValueError: an invalid argument; the message says what was expected.

    Example:
        >>> import torch
        >>> from maxsup_hf import maxsup_loss
        >>> logits, labels = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1])
        >>> print(f"{maxsup_loss(logits, labels, alpha=0.1):.3f}")
        1.508
    """
    soft = target.is_floating_point()
    logits = torch.movedim(input, 1, -1) if input.ndim > 1 else input
    labels = torch.movedim(target, 1, -1) if soft and target.ndim > 1 else target
    loss = create_loss("maxsup", alpha=alpha, alpha_end=None)
    return loss(logits, labels, reduction=reduction, ignore_index=ignore_index, weight=weight)
