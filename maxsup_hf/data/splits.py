"""Dividing rows into training and validation data, and limiting how many of them are used."""

from __future__ import annotations

import logging

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray

from maxsup_hf.data.arguments import DataArguments
from maxsup_hf.data.columns import read_column
from maxsup_hf.data.loading import Splits

logger = logging.getLogger(__name__)

# Which rows are held out must not depend on --seed: runs with different seeds are compared on the same rows.
SPLIT_SEED = 0


def hold_out_and_limit(splits: Splits, args: DataArguments, label_column: str | None = None) -> Splits:
    """Hold out validation data if there are none, then limit the number of rows: the splits that a run uses."""
    return limit_rows(hold_out_validation(splits, args.train_val_split, label_column), args, label_column)


def hold_out_validation(splits: Splits, share: float, label_column: str | None = None) -> Splits:
    """As `divide`, and log how many rows are held out."""
    divided = divide(splits, share, label_column)
    if divided is not splits:
        held_out, count = len(divided["validation"]), len(splits["train"])
        logger.info("no validation data: held out %d of the %d training rows (train_val_split)", held_out, count)
    return divided


def divide(splits: Splits, share: float, label_column: str | None = None) -> Splits:
    """If there are training data and no validation data, take a share of them, in proportion from every class.

    Args:
        label_column: (N,) classes; `None` if rows have no class.

    Raises:
        ValueError: the training data has a single row.
    """
    if "validation" in splits or "train" not in splits:
        return splits
    train = splits["train"]
    if len(train) < 2:
        raise ValueError(
            f"the training data has {len(train)} row, too few to hold one out for validation; add rows or validation data"
        )
    count = min(max(1, round(len(train) * share)), len(train) - 1)
    classes = _classes(train, label_column)
    return _divided(splits, _without_whole_classes(stratified_indices(classes, count), classes))


def hold_out_groups(splits: Splits, share: float, column: str) -> Splits:
    """As `hold_out_validation`, but rows with the same value in a column stay together, as questions on the same text must:
    otherwise the validation data would hold texts that the model was trained on."""
    if "validation" in splits or "train" not in splits:
        return splits
    train = splits["train"]
    _, group_of, sizes = np.unique(read_column(train, column).to_numpy(), return_inverse=True, return_counts=True)
    if len(sizes) == len(train):
        return hold_out_validation(splits, share)
    if len(sizes) < 2:
        raise ValueError(
            f"the training data has a single {column}, and rows with the same one are not divided: bring validation data"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(len(sizes))
    most = max(1, round(len(train) * share))
    taken = order[: max(1, int(np.searchsorted(np.cumsum(sizes[order]), most, side="right")))][: len(sizes) - 1]
    held_out = np.flatnonzero(np.isin(group_of, taken))
    logger.info(
        "no validation data: held out %d of the %d training rows, all rows of %d of %d values of %s (train_val_split)",
        len(held_out), len(train), len(taken), len(sizes), column,
    )  # fmt: skip
    return _divided(splits, held_out)


def _divided(splits: Splits, held_out: NDArray[np.integer]) -> Splits:
    train = splits["train"]
    kept = np.setdiff1d(np.arange(len(train)), held_out)
    return {**splits, "train": train.select(kept), "validation": train.select(held_out)}


def _without_whole_classes(held_out: NDArray[np.integer], classes: NDArray) -> NDArray[np.integer]:
    """Return a row to training of each class that would be held out entirely: an unseen class cannot be learned.

    Raises:
        ValueError: nothing is left to hold out.
    """
    in_training = np.isin(classes, np.delete(classes, held_out))
    whole = held_out[~in_training[held_out]]
    _, first = np.unique(classes[whole], return_index=True)
    left = np.setdiff1d(held_out, whole[first])
    if not len(left):
        raise ValueError(
            "no class of the training data has rows enough to hold one out for validation; add rows or validation data"
        )
    return left


def limit_rows(splits: Splits, args: DataArguments, label_column: str | None = None) -> Splits:
    """Cut the splits to `--max_train_samples`, `--max_eval_samples` and `--max_test_samples`; see `divide`."""
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples, "test": args.max_test_samples}
    limited = dict(splits)
    for split, dataset in splits.items():
        limit = limits[split]
        if limit is not None and limit < len(dataset):
            limited[split] = dataset.select(stratified_indices(_classes(dataset, label_column), limit))
    return limited


def _classes(dataset: Dataset, label_column: str | None) -> NDArray:
    return np.zeros(len(dataset), int) if label_column is None else read_column(dataset, label_column).to_numpy()


def stratified_indices(labels: ArrayLike, count: int, seed: int = SPLIT_SEED) -> NDArray[np.integer]:
    """Draw `count` of N rows, from each class in proportion to its size, up to rounding.

    Args:
        labels: (N,) values that can be sorted.

    Returns:
        (count,) sorted indices. They are the same at every call, and do not depend on how the classes are numbered.
    """
    labels = np.asarray(labels)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    # Group the shuffled rows by class, classes in the order in which they first appear, and take evenly spaced rows: each
    # class gets its share up to one row.
    _, first_seen, class_of = np.unique(labels[shuffled], return_index=True, return_inverse=True)
    by_class = shuffled[np.argsort(first_seen[class_of], kind="stable")]
    position = np.arange(len(labels) + 1) * count // len(labels)
    return np.sort(by_class[np.diff(position) > 0])
