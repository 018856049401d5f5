"""The z-loss of PaLM (Chowdhery et al., 2022): a penalty on the log-partition function."""

from torch import Tensor

from maxsup_hf.losses._registry import register_loss

CITATION = """@article{chowdhery2022palm,
  title={PaLM: Scaling Language Modeling with Pathways},
  author={Chowdhery, Aakanksha and Narang, Sharan and Devlin, Jacob and others},
  journal={arXiv preprint arXiv:2204.02311},
  year={2022}
}"""


@register_loss("z_loss", citation=CITATION, shift_invariant=False)
def z_loss(cross_entropy: Tensor, lse: Tensor, *, lam: float = 1e-4) -> tuple[Tensor, Tensor]:
    """z-loss: cross-entropy + λ·(log Σ exp z)²."""
    return cross_entropy, lam * lse**2
