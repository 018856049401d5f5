"""Name, arguments and state of the loss in a checkpoint."""

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
    """Write the name, arguments and state of a loss into a checkpoint.

    Args:
        folder: of the checkpoint.
        loss: the loss that is trained.
        tensors: `loss.state.tensors()`, summed over ranks; empty for a loss without state.
        class_weights: (K,) class weights of the training, or `None`.
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
    """Restore the state of a loss from a checkpoint, after checking that it was trained with the same loss.

    Args:
        folder: of the checkpoint.
        loss: whose state is restored.
        other_loss: allow a checkpoint of another loss. Its state is restored only if both losses have the same name.
        main: whether this is the main process, which restores the state that was summed over ranks.
        class_weights: (K,) class weights of this training, or `None`.

    Returns:
        Whether the checkpoint was trained with this loss.

    Raises:
        ValueError: the checkpoint has another loss, other arguments, or no state for this loss.
    """
    path = Path(folder) / LOSS_STATE_NAME
    now = {"loss": loss.spec.name, "loss_kwargs": loss.kwargs, "class_weights": _rounded(class_weights)}
    if not path.exists():
        if loss.state is not None and not other_loss:
            raise ValueError(
                f"{folder} has no {LOSS_STATE_NAME}, so what loss {loss.spec.name!r} had learned is unknown: resume a "
                "checkpoint that MaxSupTrainer wrote with this loss, or reset its state with --resume_with_other_loss"
            )
        logger.warning("%s does not record which loss it was trained with; continuing with %s", folder, loss)
        return False
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safetensors file cannot be iterated)
    before = {"loss": metadata["loss"], "loss_kwargs": json.loads(metadata["loss_kwargs"])}
    before["class_weights"] = json.loads(metadata.get("class_weights", json.dumps(now["class_weights"])))
    if before != now:
        changes = [f"{key}: {before[key]!r} there, {now[key]!r} here" for key in now if before[key] != now[key]]
        difference = "; ".join(changes)
        if not other_loss:
            raise ValueError(
                f"{folder} was trained with another loss ({difference}): pass the same --loss, --loss_kwargs and "
                "--class_weights, or allow the change with --resume_with_other_loss"
            )
        logger.warning("%s was trained with another loss (%s); continuing with the one given here", folder, difference)
    if loss.state is not None and tensors and before["loss"] == now["loss"]:
        loss.state.load(tensors, main)
    return before == now
