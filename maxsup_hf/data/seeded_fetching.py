"""Random augmentation that a resumed run repeats: what is drawn for a batch depends on the seed, the epoch and its rows.

The stock Trainer draws it from the generators that the model's dropout uses too. It skips the batches that were trained
before a checkpoint without fetching them, and accelerate fetches one batch ahead; so after a resume masked tokens, Mixup and
random crops are others than without the interruption (in the worker processes of a DataLoader too). Here fetching seeds the
generators by itself, and leaves the model's alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info


class SeededFetching(Dataset):
    """A map-style data set that seeds Python's, NumPy's and torch's (CPU) generators before it reads a batch.

    Args:
        dataset: what is read.
        seed: the run's.

    Attributes:
        epoch: to be set before each one.
    """

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed, self.epoch = dataset, seed, 0
        self._before: Any = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not yet there, while this is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """What a DataLoader calls for a batch, right before its collator."""
        if get_worker_info() is None:  # the model draws from the same generators
            self._before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        key = repr((self.seed, self.epoch, [int(index) for index in indices]))
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        random.seed(number)
        np.random.seed(number % 2**32)
        torch.default_generator.manual_seed(number % 2**63)  # torch.manual_seed would reset the GPUs' too
        fetch = getattr(self.dataset, "__getitems__", None)
        return fetch(indices) if fetch else [self.dataset[index] for index in indices]

    def restore(self) -> None:
        """Put the generators back, once the batch is collated."""
        if self._before is not None:
            python, numpy, cpu = self._before
            self._before = None
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(cpu)


class RestoringCollator:
    """A collator that ends what `SeededFetching` began."""

    def __init__(self, collator: Callable[[list[Any]], Any], dataset: SeededFetching):
        self.collator, self.dataset = collator, dataset

    def __call__(self, rows: list[Any]) -> Any:
        try:
            return self.collator(rows)
        finally:
            self.dataset.restore()
