"""Random augmentation that a resumed run repeats: the random numbers of a batch depend on the seed, the epoch and its rows.

The stock Trainer draws them from the generators that dropout uses as well. On resuming it skips the batches before the
checkpoint without fetching them, and accelerate fetches one batch ahead. So after a resume, masked tokens, Mixup and random
crops differ from those of an uninterrupted run, also in the worker processes of a DataLoader. Here, fetching a batch seeds
the generators first and restores them afterwards.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset, get_worker_info

# What Pillow and our checks of images and masks raise.
BROKEN = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)


class UnreadableRow(ValueError):
    """A row cannot be read any more, or was not checked before."""

    def __init__(self, message: str):  # of a worker process it holds a traceback, and begins with words of torch
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class NamedRows(Dataset):
    """A map-style data set that names the row and its file where one cannot be read.

    Args:
        dataset: a map-style data set.
        what: "training data", for messages.
    """

    def __init__(self, dataset: Any, what: str):
        self.dataset, self.what = dataset, what

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not set yet while this object is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Read a batch; a DataLoader calls this right before its collator.

        Raises:
            UnreadableRow: a row cannot be read.
        """
        fetch = getattr(self.dataset, "__getitems__", None)
        try:
            return fetch(indices) if fetch else [self.dataset[index] for index in indices]
        except BROKEN as error:
            raise UnreadableRow(self._describe(indices, error)) from error

    def _describe(self, indices: Sequence[int], error: Exception) -> str:
        """Which of some rows cannot be read, and its files."""
        for index in map(int, indices):
            try:
                self.dataset[index]
            except BROKEN as found:
                return f"row {index} of the {self.what}{_files(self.dataset, index)} cannot be read: {found}"
        return f"rows of the {self.what} could not be read: {error}"


class SeededFetching(NamedRows):
    """A map-style data set that seeds the generators of Python, NumPy and torch (CPU) before it reads a batch.

    Args:
        dataset: the training data, map-style.
        seed: of the run.

    Attributes:
        epoch: the current epoch; whoever trains sets it.
    """

    def __init__(self, dataset: Any, seed: int):
        super().__init__(dataset, "training data")
        self.seed, self.epoch = seed, 0
        self._before: Any = None

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        if get_worker_info() is None:  # in the main process the model draws from the same generators
            self._before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        key = repr((self.seed, self.epoch, [int(index) for index in indices]))
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        random.seed(number)
        np.random.seed(number % 2**32)
        torch.default_generator.manual_seed(number % 2**63)  # torch.manual_seed would also reset the generators of GPUs
        return super().__getitems__(indices)

    def restore(self) -> None:
        """Restore the generators once the batch is collated."""
        if self._before is not None:
            python, numpy, cpu = self._before
            self._before = None
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(cpu)


class RestoringCollator:
    """A collator that restores the generators that `SeededFetching` seeded."""

    def __init__(self, collator: Callable[[list[Any]], Any], dataset: SeededFetching):
        self.collator, self.dataset = collator, dataset

    def __call__(self, rows: list[Any]) -> Any:
        try:
            return self.collator(rows)
        finally:
            self.dataset.restore()


def _files(dataset: Any, index: int) -> str:
    """The files that a row of images was read from, in parentheses; empty if they are unknown."""
    if not isinstance(dataset, datasets.Dataset):
        return ""
    (row,) = dataset.with_format("arrow")[index : index + 1].to_pylist()
    paths = [value["path"] for value in row.values() if isinstance(value, dict) and value.get("path")]
    return f" ({', '.join(paths)})" if paths else ""
