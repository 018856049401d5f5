"""Trainers of Hugging Face with a registered loss, their arguments, and what belongs to a training."""

from maxsup_hf.trainer.trainer import MaxSupMixin, MaxSupSeq2SeqTrainer, MaxSupTrainer

__all__ = ["MaxSupMixin", "MaxSupSeq2SeqTrainer", "MaxSupTrainer"]
