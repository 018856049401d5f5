"""Names of losses as they are read in tables and figures."""

LABELS = {
    "cross_entropy": "cross-entropy",
    "maxsup": "MaxSup",
    "z_loss": "z-loss",
    "logit_norm": "LogitNorm",
    "zipf_label_smoothing": "Zipf label smoothing",
    "ls_regularization": "LS regularization",
    "ls_error_amplification": "LS error amplification",
}


def loss_label(name: str) -> str:
    """The name of a loss, or of a sum of losses, as it is read: `label_smoothing+maxsup` is "label smoothing + MaxSup"."""
    return " + ".join(LABELS.get(part, part.replace("_", " ")) for part in name.split("+"))
