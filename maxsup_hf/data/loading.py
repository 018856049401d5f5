"""Loading the splits of a run from the Hub, from files or folders, or from the built-in data set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from datasets import Dataset, DatasetDict, ReadInstruction, load_dataset, load_from_disk

from maxsup_hf.data.arguments import DataArguments, data_flags
from maxsup_hf.data.class_folders import class_folder_splits, load_class_folders
from maxsup_hf.data.files import FORMATS, Formats, is_saved, load_file, load_saved, loading

Splits = dict[str, Dataset]
SPLITS = ("train", "validation", "test")
USUAL_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev", "eval"), "test": ("test",)}


def load_splits(
    args: DataArguments,
    builtin: Callable[[], Dataset],
    load_folder: Callable[[str, str], Dataset] = load_class_folders,
    formats: Formats = FORMATS,
) -> Splits:
    """The splits of the user's data, or else the built-in data set as training data.

    Args:
        builtin: makes the task's built-in data set.
        load_folder: reads the folder of `--train_dir` and its like, given the flag's name and its value.
        formats: file extension -> what reads it, see `maxsup_hf.data.files`.

    Returns:
        `train` (which may be absent if `args.needs_training_data` is false), and `validation` and `test` if given, in this
        order; none is empty.

    Raises:
        ValueError: the flags contradict each other, or the data cannot be loaded or is empty.
        FileNotFoundError: a file or folder does not exist.
    """
    flags = data_flags(args)
    kinds = {name.rpartition("_")[2] for name in flags}
    if len(kinds) > 1:
        raise ValueError(f"data must come from one kind of source, got {' and '.join(flags)}; keep one kind")
    for name in ("dataset_config_name", "train_split_name", "validation_split_name", "test_split_name"):
        if getattr(args, name) is not None and not args.dataset_name:
            raise ValueError(f"{name} is for --dataset_name, which is not given")
    if args.needs_training_data and flags and kinds != {"name"} and not any(name.startswith("train_") for name in flags):
        raise ValueError(
            f"{flags[0]} is given without training data; give train_{kinds.pop()} too, or --do_train false with "
            "--model_name_or_path to evaluate a trained model"
        )
    if not flags:
        splits = {"train": builtin()}
    elif args.dataset_name:
        splits = _load_named(args)
    else:
        load_files = partial(load_file, formats=formats, delimiter=args.csv_delimiter)
        load = load_files if kinds == {"file"} else load_folder
        splits = {
            name.partition("_")[0]: (load_saved if is_saved(getattr(args, name)) else load)(name, getattr(args, name))
            for name in flags
        }
    for split, dataset in splits.items():
        if len(dataset) == 0:
            raise ValueError(f"the {split} data is empty; it must have at least one row")
    return {split: with_dotted_columns(dataset, args) for split, dataset in splits.items()}


def first_split(splits: Splits) -> tuple[str, Dataset]:
    """The split whose columns are looked for in all: the training data, or the first split of an evaluation without any."""
    return next(iter(splits.items()))


def with_dotted_columns(dataset: Dataset, args: Any) -> Dataset:
    """If a flag names a column such as `data.text`, which is in a column of dicts, make columns of what is in them."""
    named = [str(value) for name, value in vars(args).items() if name.endswith("_column_name") and value]
    is_nested = any("." in name and name not in dataset.column_names for name in named)
    return dataset.flatten() if is_nested else dataset


# ---- data sets with several splits ----


def load_named(argument: str, name: str, configuration: str | None = None) -> DatasetDict:
    """All splits of a data set on the Hub, or of a local folder; a single one without a name is called train.

    Raises:
        ValueError: it cannot be loaded.
    """
    if is_saved(name) and configuration is not None:
        raise ValueError(f"dataset_config_name: {name!r} is a folder of save_to_disk, which has no configurations")
    folders = class_folder_splits(name) if configuration is None else {}
    if folders:  # datasets would leave out classes whose name begins with a dot or two underscores, and links
        return DatasetDict({split: load_class_folders(argument, str(folder)) for split, folder in folders.items()})
    with loading(argument, name):
        if is_saved(name):
            loaded = load_from_disk(name)
        else:
            loaded = load_dataset(name, configuration)
    return loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)


def _load_named(args: DataArguments) -> Splits:
    """The splits of `--dataset_name`, under the names that the flags give or that are common."""
    name = args.dataset_name
    assert name is not None
    available = load_named("dataset_name", name, args.dataset_config_name)
    splits = {}
    for split in SPLITS:
        given = getattr(args, f"{split}_split_name")
        source = given or next((usual for usual in USUAL_NAMES[split] if usual in available), None)
        base = source.partition("[")[0] if source else None
        if source is not None and base in available:
            splits[split] = sliced(f"{split}_split_name", available[base], source)
        elif given or (split == "train" and args.needs_training_data):
            raise ValueError(
                f"{split}_split_name: {name!r} has no split {given or 'train'!r}; name one of these: {', '.join(available)}"
            )
    if not splits:
        raise ValueError(f"test_split_name: {name!r} has no split test; name one of these: {', '.join(available)}")
    return splits


def sliced(argument: str, dataset: Dataset, split: str) -> Dataset:
    """The rows that a split such as `train[:50]` or `train[10%:]` names."""
    name, bracket, _ = split.partition("[")
    if not bracket:
        return dataset
    with loading(argument, split):
        (part,) = ReadInstruction.from_spec(split).to_absolute({name: len(dataset)})
    return dataset.select(range(part.from_ or 0, len(dataset) if part.to is None else part.to))
