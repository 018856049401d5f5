"""Command-line flags that choose the data of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from datasets import Dataset


def flag(help: str, default: Any = None) -> Any:
    """A dataclass field with its line in `--help`."""
    return field(default=default, metadata={"help": help})


def no_flag() -> Any:
    """Remove a flag of the base class from a task that has no use for it: giving it is then an error."""
    return field(default=None, init=False)


def check_not_blank(flags: Mapping[str, Any], allowed: Collection[str] = ()) -> None:
    """Check that no flag has the value that an unset variable of a shell gives it.

    Raises:
        ValueError: names the flag.
    """
    for name, value in flags.items():
        # A space or a tab may separate columns; `delimiter` refuses an empty text.
        if isinstance(value, str) and not value.strip() and name not in ("csv_delimiter", *allowed):
            raise ValueError(f"{name} is empty; give it a value, or leave it out")


def delimiter(text: str) -> str:
    r"""What separates the columns of csv files; a tab may be written `\t`.

    Raises:
        ValueError: it is not a single character.
    """
    found = text.replace("\\t", "\t")
    if len(found) != 1:
        raise ValueError(f"csv_delimiter must be a single character, got {text!r}")
    return found


@dataclass
class DataArguments:
    """The data of a run."""

    dataset_name: str | None = flag("Data set: a Hub id or a local folder.")
    dataset_config_name: str | None = flag("Configuration (subset) of the data set.")
    train_split_name: str | None = flag("Split of --dataset_name to train on (default: train).")
    validation_split_name: str | None = flag("Split of --dataset_name to evaluate on (default: validation, valid, …).")
    test_split_name: str | None = flag("Split of --dataset_name to test on at the end (default: test).")
    train_file: str | None = flag("Training data: a csv, tsv, json, jsonl or parquet file.")
    validation_file: str | None = flag("Validation data, as --train_file.")
    test_file: str | None = flag("Test data, evaluated once at the end, as --train_file.")
    csv_delimiter: str | None = flag("What separates the columns of csv files (default: a comma).")
    train_val_split: float = flag("Share of the training data to hold out if there is no validation data.", 0.15)
    max_train_samples: int | None = flag("Train on at most this many rows, drawn in proportion from every class.")
    max_eval_samples: int | None = flag("Evaluate on at most this many rows, drawn in proportion from every class.")
    max_test_samples: int | None = flag("Test on at most this many rows, drawn in proportion from every class.")
    label_column_name: str | None = flag("Column of the labels (default: found by its type or name).")
    # ---- not flags: what the run does, and test data without labels, which is predicted and not evaluated ----
    needs_training_data: bool = field(default=True, init=False)  # not to evaluate a trained model
    predicts: bool = field(default=False, init=False)
    unlabelled: Dataset | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_not_blank({each.name: getattr(self, each.name) for each in fields(self) if each.default is None})
        if not 0 < self.train_val_split < 1:
            raise ValueError(f"train_val_split must lie between 0 and 1 (both excluded), got {self.train_val_split}")
        if self.csv_delimiter is not None:
            self.csv_delimiter = delimiter(self.csv_delimiter)
        for name in ("max_train_samples", "max_eval_samples", "max_test_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}; leave it out to use all rows")


def data_flags(args: Any) -> list[str]:
    """The given flags that name a source of data; empty if the task's built-in data set is used."""
    names = ["dataset_name", *(f"{split}_{kind}" for kind in ("file", "dir") for split in ("train", "validation", "test"))]
    return [name for name in names if getattr(args, name, None)]
