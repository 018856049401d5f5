"""The confidence penalty of Pereyra et al. (2017): rewards the entropy of the predicted distribution."""

from torch import Tensor

from maxsup_hf.losses._registry import register_loss

CITATION = """@inproceedings{pereyra2017regularizing,
  title={Regularizing Neural Networks by Penalizing Confident Output Distributions},
  author={Pereyra, Gabriel and Tucker, George and Chorowski, Jan and Kaiser, {\\L}ukasz and Hinton, Geoffrey},
  booktitle={ICLR Workshop},
  year={2017},
  note={arXiv:1701.06548}
}"""


@register_loss("confidence_penalty", citation=CITATION)
def confidence_penalty(cross_entropy: Tensor, entropy: Tensor, *, beta: float = 0.1) -> tuple[Tensor, Tensor]:
    """Confidence penalty: cross-entropy − β·entropy of softmax(z)."""
    return cross_entropy, -beta * entropy
