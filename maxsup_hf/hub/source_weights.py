"""Read the weights in a checkpoint that other code wrote, without running code that a pickle may contain."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from maxsup_hf.output.messages import listed

# Entries of a checkpoint that hold weights; the first one that is there is taken. The authors evaluate `model`, not the
# moving average beside it.
ENTRIES = ("model", "state_dict", "model_state_dict", "net", "state_dict_ema", "model_ema")
# What DataParallel, Lightning modules and others put before the names. `_orig_mod.` of torch.compile may be anywhere.
WRAPPERS = ("module.", "model.", "net.")
SHOWN = 300  # characters of a message by torch
ZIP_END = 22 + 65_535  # bytes in which the last record of a zip file begins


class SourceWeights(NamedTuple):
    """`tensors`: name -> tensor, without the prefixes of wrappers. `entry`: the entry of the checkpoint that they come from,
    None if the file holds nothing else; `others`: further entries with weights."""

    tensors: dict[str, Tensor]
    entry: str | None
    others: list[str]


def read_source(path: str | Path, entry: str | None = None) -> SourceWeights:
    """Read the weights in a file of `torch.save` or safetensors.

    Args:
        entry: the entry to read if the weights are in a dictionary. Default: the first of `ENTRIES` that is there.

    Raises:
        ValueError: the file is damaged, holds objects that are not safe to load, or has no weights.
    """
    content = _load(Path(path))
    found = [name for name in ENTRIES if _is_mapping(content, name)]
    chosen = entry or next(iter(found), None)
    if entry is not None and not _is_mapping(content, entry):
        raise ValueError(f"entry must be one with weights in {path} ({first_names(found) or 'it has none'}), got {entry!r}")
    others = [name for name in found if name != chosen]
    weights = content if chosen is None else content[chosen]
    while inner := next((name for name in ENTRIES if _is_mapping(weights, name)), None):
        weights = weights[inner]
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        held = f"a {type(weights).__name__}"
        if isinstance(weights, Mapping):
            held = f"the entries {first_names(weights)}" if weights else "no entry"
        raise ValueError(
            f"{path} must hold a state dict (a mapping from names to tensors), alone or as the entry {', '.join(ENTRIES)}; "
            f"it holds {held}"
        )
    return SourceWeights(_unwrapped({str(name): value for name, value in weights.items()}), chosen, others)


def read_checkpoint(path: str | Path, entry: str | None = None) -> dict[str, Tensor]:
    """The tensors of `read_source`: name -> tensor."""
    return read_source(path, entry).tensors


def first_names(names: Iterable[Any]) -> str:
    """The first three names, each cut to 80 characters, and how many more there are."""
    return listed([str(name)[:80] for name in names], 3)


def _is_mapping(content: Any, name: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(name), Mapping)


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the model inside its wrappers. What is not under a wrapper's prefix is the wrapper's own, such as the
    buffers of a loss or the counter of a moving average."""
    weights = {name.replace("_orig_mod.", ""): value for name, value in weights.items()}
    while prefix := next((p for p in WRAPPERS if any(name.startswith(p) for name in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return weights


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(200)
        file.seek(max(0, path.stat().st_size - ZIP_END))
        problem = _what_it_is_instead(head, end=file.read())
    if problem:
        raise ValueError(f"{path} {problem}")
    try:
        if head[8:9] == b"{":
            return load_file(path)
        # The authors' checkpoints hold the parsed command line. A Namespace is a bag of attributes and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the versions of pickles
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise anything in an unpickler
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        if unsafe:
            raise ValueError(
                f"{path} contains more than weights ({unsafe[1][:80]}), and loading it could run code: use a file that "
                "torch.load(weights_only=True) can read, as written by torch.save(model.state_dict(), …)"
            ) from error
        said = " ".join(str(error).split())[:SHOWN]
        # the texts of an unpickler, and those that name `weights_only`, recommend unsafe loading
        if not said or isinstance(error, pickle.UnpicklingError) or "weights_only" in said:
            said = "its pickle cannot be read"
        raise ValueError(f"{path} is damaged, or is not a file of torch.save or safetensors: {said}") from error


def _what_it_is_instead(head: bytes, end: bytes) -> str | None:
    """Why a file cannot hold weights, from its first and last bytes."""
    if not head:
        return "is empty: download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights: run `git lfs pull` in its repository, or download the file itself"
    if head.lstrip().startswith(b"<"):
        return "is an HTML or XML page, not weights: the download needs another address or a login"
    if head.startswith(b"PK\x03\x04") and b"PK\x05\x06" not in end:  # a zip file, as torch.save writes, ends in its contents
        return "is truncated: its end is missing; download it again"
    return None
