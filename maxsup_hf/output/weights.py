"""Which files of a folder are the weights of a model, and whether they can be read."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

LOSS_STATE_NAME = "loss_state.safetensors"  # the loss of a training, beside its weights
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin")


def weight_files(folder: str | Path) -> list[Path]:
    """The files of weights in a folder, those of an adapter and all shards included."""
    found = (path for pattern in WEIGHTS for path in Path(folder).glob(pattern))
    return sorted(path for path in found if path.is_file() and path.name != LOSS_STATE_NAME)


def is_adapter(path: Path) -> bool:
    """Whether a file of weights is that of an adapter, which needs a base model."""
    return path.name.startswith("adapter_model")


def safetensors_error(path: Path) -> Exception | None:
    """What is wrong with the length or the header of a safetensors file."""
    try:
        with safe_open(path, "pt"):  # compares the file's length with its header
            return None
    except (SafetensorError, OSError) as error:
        return error
