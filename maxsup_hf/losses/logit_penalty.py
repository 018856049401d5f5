"""The logit penalty of Kornblith et al. (2021): an L2 penalty on the logits."""

from torch import Tensor

from maxsup_hf.losses._registry import register_loss

CITATION = """@inproceedings{kornblith2021why,
  title={Why Do Better Loss Functions Lead to Less Transferable Features?},
  author={Kornblith, Simon and Chen, Ting and Lee, Honglak and Norouzi, Mohammad},
  booktitle={Advances in Neural Information Processing Systems},
  year={2021},
  note={arXiv:2010.16402}
}"""


@register_loss("logit_penalty", citation=CITATION, shift_invariant=False)
def logit_penalty(cross_entropy: Tensor, square: Tensor, *, beta: float = 2e-3) -> tuple[Tensor, Tensor]:
    """Logit penalty: cross-entropy + β/2·Σ z². β is 2e-3 in the MaxSup repository, 6e-4 in Kornblith et al."""
    return cross_entropy, beta / 2 * square
