"""The loss of a checkpoint: which it was, and what it remembers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from maxsup_hf.losses import Loss
from maxsup_hf.output.files import replacing

LOSS_STATE_NAME = "loss_state.safetensors"

logger = logging.getLogger(__name__)


def save_loss(folder: str | Path, loss: Loss, tensors: Mapping[str, Tensor], class_weights: Tensor | None = None) -> None:
    """Write a loss's name and arguments, and what it remembers, into a checkpoint.

    Args:
        folder: the checkpoint's.
        loss: as it is trained with.
        tensors: `loss.state.tensors()`, summed over ranks; empty for a loss without a state.
        class_weights: (K,) that it was trained with, or `None`.
    """
    path = Path(folder) / LOSS_STATE_NAME
    metadata = {"loss": loss.spec.name, "loss_kwargs": json.dumps(loss.kwargs)}
    metadata["class_weights"] = json.dumps(_rounded(class_weights))
    with replacing(path) as unfinished:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, metadata)


def _rounded(class_weights: Tensor | None) -> list[float] | None:
    return None if class_weights is None else [float(f"{weight:.6g}") for weight in class_weights.tolist()]


def load_loss(
    folder: str | Path, loss: Loss, other_loss: bool = False, main: bool = True, class_weights: Tensor | None = None
) -> bool:
    """Go on with the loss of a checkpoint.

    Args:
        folder: the checkpoint's.
        loss: filled with what it remembered.
        other_loss: allow a checkpoint of another loss, of which nothing is taken over.
        main: whether this is the main process, which takes over what was seen by all.
        class_weights: (K,) that are trained with now, or `None`.

    Returns:
        Whether the checkpoint was trained with this loss.

    Raises:
        ValueError: the checkpoint is of another loss or of other arguments, or lacks what this loss remembers.
    """
    path = Path(folder) / LOSS_STATE_NAME
    now = {"loss": loss.spec.name, "loss_kwargs": loss.kwargs, "class_weights": _rounded(class_weights)}
    if not path.exists():
        if loss.state is not None and not other_loss:
            raise ValueError(
                f"{folder} has no {LOSS_STATE_NAME}, so what loss {loss.spec.name!r} had learned is not known: resume a "
                "checkpoint that MaxSupTrainer wrote with it, or begin the loss anew with --resume_with_other_loss"
            )
        logger.warning("%s does not say which loss it was trained with; going on with %s", folder, loss)
        return False
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file is no mapping)
    before = {"loss": metadata["loss"], "loss_kwargs": json.loads(metadata["loss_kwargs"])}
    before["class_weights"] = json.loads(metadata.get("class_weights", json.dumps(now["class_weights"])))
    if before != now:
        difference = "; ".join(f"{key}: {before[key]!r} there, {now[key]!r} here" for key in now if before[key] != now[key])
        if not other_loss:
            raise ValueError(
                f"{folder} was trained with another loss ({difference}): give the same --loss, --loss_kwargs and "
                "--class_weights, or allow "
                "the change with --resume_with_other_loss"
            )
        logger.warning("%s was trained with another loss (%s); going on with the one here", folder, difference)
    if loss.state is not None and tensors and before["loss"] == now["loss"]:
        loss.state.load(tensors, main)
    return before == now
