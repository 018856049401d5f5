"""A loaded model, and its outputs for rows."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from maxsup_hf.data.seeded_fetching import NamedRows

Row = dict[str, Any]


class Model(NamedTuple):
    """A loaded model.

    Attributes:
        model: in evaluation mode, on its device.
        processor: its tokenizer or image processor.
        length: maximum length of a text in tokens.
        args: the command line.
    """

    model: Any
    processor: Any
    length: int
    args: Namespace

    @property
    def names(self) -> list[str]:
        return [self.model.config.id2label[k] for k in range(self.model.config.num_labels)]

    def batches(self, rows: Dataset, collate: Callable[[list[Row]], Any]) -> Iterator[dict[str, Tensor]]:
        """The rows in batches, on the model's device; real numbers in the type of its weights."""
        loader = DataLoader(
            NamedRows(rows, "test data"),
            batch_size=self.args.batch_size,
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
        )
        device, dtype = self.model.device, self.model.dtype
        for batch in tqdm(loader, desc="predicting", unit="batch", disable=None):
            yield {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in batch.items()}

    def outputs(self, rows: Dataset, collate: Callable[[list[Row]], Any]) -> Iterator[Any]:
        """The model's outputs for one batch after another."""
        for batch in self.batches(rows, collate):
            with torch.inference_mode():
                yield self.model(**batch)

    def logits(self, rows: Dataset, collate: Callable[[list[Row]], Any]) -> Tensor:
        """(N, K) on the CPU, in float32."""
        return torch.cat([logits_of(output).float().cpu() for output in self.outputs(rows, collate)])


def logits_of(output: Any) -> Tensor:
    return output.logits[0] if isinstance(output.logits, tuple) else output.logits


def most_probable(logits: Tensor, names: Sequence[str], top_k: int) -> list[Row]:
    """The most probable classes of each row, with their softmax probabilities."""
    if not torch.isfinite(logits.max(-1).values).all():
        raise ValueError("the model's logits are NaN or infinite; are its weights complete?")
    probabilities, classes = logits.softmax(-1).topk(min(top_k, len(names)))
    found = []
    for row_probabilities, row_classes in zip(probabilities.tolist(), classes.tolist(), strict=True):
        row: Row = {}
        for place, (probability, k) in enumerate(zip(row_probabilities, row_classes, strict=True), 1):
            suffix = "" if place == 1 else f"_{place}"
            row |= {f"prediction{suffix}": names[k], f"probability{suffix}": probability}
        found.append(row)
    return found
