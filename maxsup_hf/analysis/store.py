"""Features and logits on disk, so that a model sees a data set once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from maxsup_hf.trainer.features import FeatureRows

INDEX = "index.json"
SHARD = 2**24  # numbers of a file: 64 MiB


def save_rows(folder: str | Path, batches: Iterable[FeatureRows], about: dict[str, Any]) -> None:
    """Write batches as `rows-00000.safetensors`, … and, last of all, what is known of them as `index.json`.

    The folder appears when it is whole: an interrupted extraction leaves nothing that could be taken for one.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        files = []
        for i, shard in enumerate(_shards(batches)):
            files.append(f"rows-{i:05}.safetensors")
            save_file({name: x.contiguous() for name, x in shard._asdict().items()}, partial / files[-1])
        (partial / INDEX).write_text(json.dumps({**about, "files": files}, indent=1) + "\n", encoding="utf-8")
        if not has_rows(folder):  # unless another process was faster
            shutil.rmtree(folder, ignore_errors=True)  # what is there is damaged
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def has_rows(folder: str | Path) -> bool:
    """Whether a folder holds all that `save_rows` wrote; a file that was cut short is found out."""
    folder = Path(folder)
    try:
        for name in json.loads((folder / INDEX).read_text(encoding="utf-8"))["files"]:
            with safe_open(folder / name, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def load_rows(folder: str | Path) -> Iterator[FeatureRows]:
    """What `save_rows` wrote, a file at a time."""
    folder = Path(folder)
    for name in json.loads((folder / INDEX).read_text(encoding="utf-8"))["files"]:
        with safe_open(folder / name, framework="pt") as file:
            yield FeatureRows(*(file.get_tensor(field) for field in FeatureRows._fields))


def model_fingerprint(model: nn.Module) -> str:
    """Of the weights and buffers, their names and types, and the config: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    config: Any = getattr(model, "config", None)
    about = {k: v for k, v in config.to_dict().items() if k != "_name_or_path"} if config is not None else {}
    digest.update(f"{type(model).__name__} {json.dumps(about, sort_keys=True, default=str)}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def data_fingerprint(columns: Iterable[tuple[str, Any]], *more: str) -> str:
    """Of the values that a model is fed with: 32 hexadecimal digits.

    An image that is only a path counts with the size and time of its file.

    Args:
        columns: names, and pyarrow ChunkedArrays as stored.
        *more: whatever else the inputs depend on: the image processor.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, column in columns:
        digest.update(f"{name} {len(column)}".encode())
        for chunk in column.chunks:
            for value in chunk.to_pylist():
                if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
                    at = os.stat(value["path"])
                    value = (value["path"], at.st_size, at.st_mtime_ns)
                digest.update(repr(value).encode() + b"\0")
    for text in more:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _shards(batches: Iterable[FeatureRows]) -> Iterator[FeatureRows]:
    held: list[FeatureRows] = []
    numbers = 0
    for rows in batches:
        held.append(rows)
        numbers += rows.features.numel() + rows.logits.numel()
        if numbers >= SHARD:
            yield _joined(held)
            held, numbers = [], 0
    if held:
        yield _joined(held)


def _joined(held: list[FeatureRows]) -> FeatureRows:
    joined: list[Tensor] = [torch.cat(parts) for parts in zip(*held, strict=True)]
    return FeatureRows(*joined)
