"""The Hugging Face shell: Trainers, their arguments, and everything around one training."""

from maxsup_hf.trainer.trainer import MaxSupMixin, MaxSupSeq2SeqTrainer, MaxSupTrainer

__all__ = ["MaxSupMixin", "MaxSupSeq2SeqTrainer", "MaxSupTrainer"]
