"""MaxSup for the Hugging Face ecosystem: one flag where label smoothing stood."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maxsup_hf.arguments import MaxSupArgumentsMixin, MaxSupSeq2SeqTrainingArguments, MaxSupTrainingArguments
    from maxsup_hf.compute_loss import compute_loss_func
    from maxsup_hf.fused_linear import fused_linear_loss
    from maxsup_hf.losses import create_loss, list_losses, ls_decomposition, register_loss
    from maxsup_hf.losses.maxsup import maxsup_loss
    from maxsup_hf.mixup import MixupCollator
    from maxsup_hf.trainer import MaxSupMixin, MaxSupSeq2SeqTrainer, MaxSupTrainer
    from maxsup_hf.vocab_parallel import vocab_parallel_loss

__version__ = version("maxsup-hf")

# Imported at first use: the losses need torch and no seconds of transformers, the help of the command line neither.
_HOME = {
    "MaxSupArgumentsMixin": "arguments",
    "MaxSupMixin": "trainer",
    "MaxSupSeq2SeqTrainer": "trainer",
    "MaxSupSeq2SeqTrainingArguments": "arguments",
    "MaxSupTrainer": "trainer",
    "MaxSupTrainingArguments": "arguments",
    "MixupCollator": "mixup",
    "compute_loss_func": "compute_loss",
    "create_loss": "losses",
    "fused_linear_loss": "fused_linear",
    "list_losses": "losses",
    "ls_decomposition": "losses",
    "maxsup_loss": "losses.maxsup",
    "register_loss": "losses",
    "vocab_parallel_loss": "vocab_parallel",
}

__all__ = [
    "MaxSupArgumentsMixin",
    "MaxSupMixin",
    "MaxSupSeq2SeqTrainer",
    "MaxSupSeq2SeqTrainingArguments",
    "MaxSupTrainer",
    "MaxSupTrainingArguments",
    "MixupCollator",
    "compute_loss_func",
    "create_loss",
    "fused_linear_loss",
    "list_losses",
    "ls_decomposition",
    "maxsup_loss",
    "register_loss",
    "vocab_parallel_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'maxsup_hf' has no attribute {name!r}")
    return getattr(import_module(f"maxsup_hf.{_HOME[name]}"), name)
