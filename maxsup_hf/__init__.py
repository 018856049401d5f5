"""MaxSup for the Hugging Face ecosystem: one flag where label smoothing stood."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from maxsup_hf.losses import create_loss, list_losses, register_loss
from maxsup_hf.losses.maxsup import maxsup_loss

if TYPE_CHECKING:
    from maxsup_hf.arguments import MaxSupArgumentsMixin, MaxSupSeq2SeqTrainingArguments, MaxSupTrainingArguments
    from maxsup_hf.compute_loss import compute_loss_func
    from maxsup_hf.trainer import MaxSupMixin, MaxSupSeq2SeqTrainer, MaxSupTrainer

__version__ = version("maxsup-hf")

# The Hugging Face shell is imported at first use: the losses alone need torch, and no seconds of transformers.
_SHELL = {
    "MaxSupArgumentsMixin": "arguments",
    "MaxSupSeq2SeqTrainingArguments": "arguments",
    "MaxSupTrainingArguments": "arguments",
    "MaxSupMixin": "trainer",
    "MaxSupSeq2SeqTrainer": "trainer",
    "MaxSupTrainer": "trainer",
    "compute_loss_func": "compute_loss",
}

__all__ = [
    "MaxSupArgumentsMixin",
    "MaxSupMixin",
    "MaxSupSeq2SeqTrainer",
    "MaxSupSeq2SeqTrainingArguments",
    "MaxSupTrainer",
    "MaxSupTrainingArguments",
    "compute_loss_func",
    "create_loss",
    "list_losses",
    "maxsup_loss",
    "register_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _SHELL:
        raise AttributeError(f"module 'maxsup_hf' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"maxsup_hf.{_SHELL[name]}"), name)
