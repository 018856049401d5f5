"""MaxSup for the Hugging Face ecosystem: one flag where label smoothing stood."""

from maxsup_hf.losses import create_loss, list_losses, register_loss
from maxsup_hf.losses.maxsup import maxsup_loss

__all__ = ["create_loss", "list_losses", "maxsup_loss", "register_loss"]
