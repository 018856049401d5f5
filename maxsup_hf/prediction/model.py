"""A loaded model, and its outputs for rows."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

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
        """The rows in batches, on the model's device."""
        size = self.args.batch_size
        for start in tqdm(range(0, len(rows), size), desc="predicting", unit="batch", disable=None):
            batch = collate([rows[i] for i in range(start, min(start + size, len(rows)))])
            yield {name: value.to(self.model.device) for name, value in batch.items()}

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
