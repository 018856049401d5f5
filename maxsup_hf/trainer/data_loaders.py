"""The data loaders of a training: a resumed run repeats its batches, and an evaluation reads the data that it was given."""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch.utils.data import IterableDataset
from transformers.trainer_pt_utils import LengthGroupedSampler

from maxsup_hf.data.seeded_fetching import NamedRows, RestoringCollator, SeededFetching

if TYPE_CHECKING:
    from transformers import Trainer as _TrainerBase
else:
    _TrainerBase = object  # a mixin, so that it comes before any Trainer class


class DataLoaderMixin(_TrainerBase):
    """The part of `MaxSupMixin` that makes data loaders."""

    _fetching: Any = None
    _sampler: Any = None

    def __init__(self, *args: Any, **kwargs: Any):
        self._evaluated: dict[str, Any] = {}  # the data set of each data loader that the stock Trainer keeps
        super().__init__(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """With persistent workers, the stock Trainer keeps the data loader of its first evaluation and returns it for any
        other data set as well, so that the metrics of the test data would be those of the validation data."""
        if self.args.dataloader_persistent_workers:
            key, given = "eval", self.eval_dataset if eval_dataset is None else eval_dataset
            if isinstance(given, str):
                key, given = given, self.eval_dataset[given]  # type: ignore[index]
            if self._evaluated.get(key) is not given:
                vars(self).get("_eval_dataloaders", {}).pop(key, None)
                self._evaluated[key] = given
        return super().get_eval_dataloader(eval_dataset)

    def _get_dataloader(self, dataset: Any, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        """Persistent workers end with their data loader, so an evaluation's belongs to its caller and the cache of the stock
        Trainer alone: accelerate keeps every one until the next training begins."""
        loader = self._make_dataloader(dataset, *args, is_training=is_training, **kwargs)
        if not is_training:
            others = [each for each in self.accelerator._dataloaders if each is not loader]
            self.accelerator._dataloaders = others
        return loader

    def _make_dataloader(
        self, dataset: Any, *args: Any, sampler_fn: Any = None, is_training: bool = False, **kwargs: Any
    ) -> Any:
        """Seed and epoch alone determine order and augmentation, so that a run resumes exactly. Broken rows are named."""
        kwargs.update(sampler_fn=sampler_fn, is_training=is_training)
        if not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset):
            return super()._get_dataloader(dataset, *args, **kwargs)
        original, collator = dataset, self.data_collator
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description="Training" if is_training else "Evaluation")
        if not is_training or self.args.dataloader_persistent_workers:  # whose copies of the data keep their first epoch
            rows = NamedRows(dataset, "training data" if is_training else "evaluation data")
            kwargs["sampler_fn"] = sampler_fn and (lambda _: sampler_fn(original))
            return super()._get_dataloader(rows, *args, **kwargs)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._fetching = fetching = SeededFetching(dataset, seed)

        def sampler(_: Any) -> Any:
            self._sampler = sampler_fn(original) if sampler_fn is not None else None
            return self._sampler

        self.data_collator = RestoringCollator(collator, fetching)
        try:
            return super()._get_dataloader(fetching, *args, **{**kwargs, "sampler_fn": sampler})
        finally:
            self.data_collator = collator

    def begin_epoch(self, epoch: int) -> None:
        """Set order and augmentation of the training data to those of this epoch."""
        if self._fetching is not None:
            self._fetching.epoch = epoch
        if isinstance(self._sampler, LengthGroupedSampler):  # otherwise draws from torch's global generator
            self._sampler.generator = torch.Generator().manual_seed(self._fetching.seed + epoch)
