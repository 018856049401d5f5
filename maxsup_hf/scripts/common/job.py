"""A run that is ready to start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from datasets import Dataset


class PredictionError(RuntimeError):
    """The predictions of the test data could not be written; what was trained is saved."""


class RowsToPredict(NamedTuple):
    """The test data as they were read, for `--do_predict`.

    Attributes:
        rows: those that are evaluated, before they become inputs of the model.
        options: flags of `maxsup-hf predict` that describe them, flag -> value, such as `text_column_name`.
    """

    rows: Dataset
    options: Mapping[str, Any]


@dataclass
class Job:
    """A run that is ready to start: everything has been read and checked.

    Attributes:
        trainer: with its model, data and `processing_class`.
        test_dataset: evaluated once, at the end.
        card: keyword arguments of `Trainer.create_model_card`.
        dry: print what would be trained instead of training.
        pretrained: whether the weights are those of a trained model.
        settings: what the user set, flag -> value.
        classifies_rows: whether each row has one class, so that features of the classes can be measured.
        pixels: of each class in the masks of the first split, of a semantic segmentation; empty if they were not counted.
        to_predict: see `RowsToPredict`; `None` without test data.
        predictions_file: where `--do_predict` writes; `None` means `predictions.csv` in the output folder.
        predict: writes the predictions of `--do_predict`; `None` without that flag.
        export: format that the trained model is exported to, or `None`.
    """

    trainer: Any
    test_dataset: Dataset | None
    card: dict[str, Any]
    dry: bool = False
    pretrained: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    classifies_rows: bool = False
    pixels: list[int] | None = None
    to_predict: RowsToPredict | None = None
    predictions_file: str | None = None
    predict: Callable[[], None] | None = None
    export: str | None = None
