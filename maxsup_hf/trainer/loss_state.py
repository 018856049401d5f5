"""Name, arguments and state of the loss in a checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from maxsup_hf.losses import Loss
from maxsup_hf.output.files import replacing
from maxsup_hf.output.weights import LOSS_STATE_NAME
from maxsup_hf.trainer.continuation import differences

HAS_MANIFEST = "has_manifest"  # in the metadata: its checkpoint is incomplete without one

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
    metadata = {"loss": loss.spec.name, "loss_kwargs": json.dumps(loss.kwargs), HAS_MANIFEST: "true"}
    metadata["class_weights"] = json.dumps(_rounded(class_weights))
    with replacing(path) as unfinished:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, metadata)


def _rounded(class_weights: Tensor | None) -> list[float] | None:
    return None if class_weights is None else [float(f"{weight:.6g}") for weight in class_weights.tolist()]


def has_manifest(folder: str | Path) -> bool:
    """Whether the checkpoint with this state of a loss was to get a manifest."""
    with safe_open(Path(folder) / LOSS_STATE_NAME, "pt") as file:
        return HAS_MANIFEST in (file.metadata() or {})


def loss_changes(folder: str | Path, loss: Loss, other_loss: bool = False, **now: Any) -> dict[str, str] | None:
    """What differs between the loss that a checkpoint was trained with and the one given here.

    Args:
        folder: of the checkpoint.
        loss: the loss of this training.
        other_loss: allow a checkpoint of another loss.
        class_weights: (K,) class weights of this training, or `None`; left out where they are not known yet.

    Returns:
        A phrase for each difference, or `None` if the checkpoint does not record its loss.

    Raises:
        ValueError: the checkpoint has another loss, other arguments, or no state for this loss.
    """
    path = Path(folder) / LOSS_STATE_NAME
    if not path.exists():
        if loss.state is not None and not other_loss:
            raise ValueError(
                f"{folder} has no {LOSS_STATE_NAME}, so what loss {loss.spec.name!r} had learned is unknown: resume a "
                "checkpoint that MaxSupTrainer wrote with this loss, or reset its state with --resume_with_other_loss"
            )
        return None
    with safe_open(path, "pt") as file:
        before = {key: json.loads(value) if key != "loss" else value for key, value in file.metadata().items()}
    now = {"loss": loss.spec.name, "loss_kwargs": loss.kwargs, **{key: _rounded(value) for key, value in now.items()}}
    changes = differences(before, now)
    if changes and not other_loss:
        raise ValueError(
            f"{folder} was trained with another loss ({'; '.join(changes.values())}): pass the same --loss, --loss_kwargs "
            "and --class_weights, or allow the change with --resume_with_other_loss"
        )
    return changes


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
    changes = loss_changes(folder, loss, other_loss, class_weights=class_weights)
    if changes is None:
        logger.warning("%s does not record which loss it was trained with; continuing with %s", folder, loss)
        return False
    if changes:
        difference = "; ".join(changes.values())
        logger.warning("%s was trained with another loss (%s); continuing with the one given here", folder, difference)
    with safe_open(Path(folder) / LOSS_STATE_NAME, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safetensors file cannot be iterated)
    if loss.state is not None and tensors and "loss" not in changes:
        loss.state.load(tensors, main)
    return not changes
