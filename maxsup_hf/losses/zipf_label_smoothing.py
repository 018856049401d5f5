"""Zipf's label smoothing (Liang et al., 2022): soft labels that follow Zipf's law in the rank of the logits."""

import torch
from torch import Tensor

from maxsup_hf.losses._registry import register_loss

CITATION = """@inproceedings{liang2022efficient,
  title={Efficient One Pass Self-distillation with Zipf's Label Smoothing},
  author={Liang, Jiajun and Li, Linze and Bing, Zhaodong and Zhao, Borui and Tang, Yao and Lin, Bo and Fan, Haoqiang},
  booktitle={ECCV},
  year={2022},
  note={arXiv:2207.12980}
}"""


@register_loss("zipf_label_smoothing", citation=CITATION, replaces_target=True, needs={"votes": "dense"})
def zipf_label_smoothing(
    cross_entropy: Tensor,
    logits: Tensor,
    labels: Tensor,
    votes: Tensor | None,
    *,
    lam: float = 0.1,
    power: float = 1.0,
    dense: bool = False,
    correct_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """Zipf's label smoothing: cross-entropy + λ·KL(p ‖ softmax over the other classes), p ∝ 1/rank^power.

    Classes are ranked, all K of them, by their logit, or with `dense=True` by the number of positions of the last feature
    map that the classifier assigns to them (`votes`); tied classes share the better rank. The label is then dropped. λ is
    0.1 on CIFAR and ImageNet, 1 on TinyImageNet and iNaturalist. `correct_only=True` excludes rows that are predicted
    wrong; the mean is still over all rows, so that it does not depend on how a batch is divided (the authors' code divides
    by the number of correct rows).
    """
    score = logits.detach()
    if dense:
        if votes is None:
            raise ValueError(
                "zipf_label_smoothing with dense=True needs votes, one class index for each position of the last feature "
                "map; for a model without a feature map, use dense=False"
            )
        score = torch.zeros_like(score).scatter_add(-1, votes, torch.ones_like(votes, dtype=score.dtype))
    is_label = torch.zeros_like(score, dtype=torch.bool).scatter(-1, labels[:, None], True)
    left_out = is_label | (logits == -torch.inf)
    # 1 + the number of classes with a higher score
    rank = score.shape[-1] + 1 - torch.searchsorted(score.sort(-1).values, score, right=True)
    p = torch.where(left_out, 0, rank.to(logits.dtype) ** -power)
    p = p / p.sum(-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    alone = left_out.all(-1, keepdim=True)  # all other classes are masked: a softmax over none is NaN
    log_q = logits.masked_fill(left_out, -torch.inf).masked_fill(alone, 0).log_softmax(-1)
    divergence = torch.where(left_out, 0, p * (p.log() - log_q.masked_fill(left_out, 0)))
    penalty = divergence.sum(-1)
    if correct_only:
        penalty = penalty * (logits.argmax(-1) == labels)
    return cross_entropy, lam * penalty
