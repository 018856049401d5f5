"""Cache features and logits on disk, so that a model runs over a data set only once."""

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

from maxsup_hf.output.files import write_json
from maxsup_hf.trainer.features import FeatureRows

INDEX = "index.json"
SHARD = 2**24  # elements in a file: 64 MiB


def save_rows(folder: str | Path, batches: Iterable[FeatureRows], about: dict[str, Any]) -> None:
    """Write batches as `rows-00000.safetensors`, … and `about` as `index.json`.

    The folder appears once it is complete: an interrupted extraction leaves nothing behind.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        files = []
        for i, shard in enumerate(_shards(batches)):
            files.append(f"rows-{i:05}.safetensors")
            save_file({name: x.contiguous() for name, x in shard._asdict().items()}, partial / files[-1])
        write_json(partial / INDEX, {**about, "files": files})
        if not has_rows(folder):  # another process may have been faster
            shutil.rmtree(folder, ignore_errors=True)  # the folder is missing, or damaged
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def has_rows(folder: str | Path) -> bool:
    """Whether a folder holds everything that `save_rows` wrote. A truncated file is detected."""
    folder = Path(folder)
    try:
        for name in json.loads((folder / INDEX).read_text(encoding="utf-8"))["files"]:
            with safe_open(folder / name, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def load_rows(folder: str | Path) -> Iterator[FeatureRows]:
    """Read what `save_rows` wrote, one file at a time."""
    folder = Path(folder)
    for name in json.loads((folder / INDEX).read_text(encoding="utf-8"))["files"]:
        with safe_open(folder / name, framework="pt") as file:
            yield FeatureRows(*(file.get_tensor(field) for field in FeatureRows._fields))


def model_fingerprint(model: nn.Module) -> str:
    """Fingerprint of the weights and buffers, with names and types, and of the config: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    config: Any = getattr(model, "config", None)
    about = {k: v for k, v in config.to_dict().items() if k != "_name_or_path"} if config is not None else {}
    digest.update(f"{type(model).__name__} {json.dumps(about, sort_keys=True, default=str)}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def data_fingerprint(columns: Iterable[tuple[str, Any]], *more: str) -> str:
    """Fingerprint of the data that a model is given: 32 hexadecimal digits.

    An image that is stored as a path is identified by the size and time of its file.

    Args:
        columns: names, and pyarrow ChunkedArrays as stored.
        *more: what else the inputs depend on, such as the image processor.
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
    elements = 0
    for rows in batches:
        held.append(rows)
        elements += rows.features.numel() + rows.logits.numel()
        if elements >= SHARD:
            yield _joined(held)
            held, elements = [], 0
    if held:
        yield _joined(held)


def _joined(held: list[FeatureRows]) -> FeatureRows:
    joined: list[Tensor] = [torch.cat(parts) for parts in zip(*held, strict=True)]
    return FeatureRows(*joined)
