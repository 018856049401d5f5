"""Loading rows from the Hub, from files or folders, or from the built-in data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetsError

from maxsup_hf.data.arguments import DataArguments, data_flags
from maxsup_hf.data.class_folders import load_class_folders

Splits = dict[str, Dataset]
SPLITS = ("train", "validation", "test")
USUAL_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev", "eval"), "test": ("test",)}

# Only an empty cell is a missing value. To pandas "NA" and "None" are missing too, but they are words: a country, an answer.
CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", CSV_OPTIONS),
    ".tsv": ("csv", {**CSV_OPTIONS, "sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
TEXT_FORMATS = {**FORMATS, ".txt": ("text", {"sample_by": "document"})}  # the file is one text, in the column `text`


@contextmanager
def loading(argument: str, value: Any, hint: str = "") -> Iterator[None]:
    """Name the argument, and end with a hint, in the error of whatever fails while its value is loaded.

    Raises:
        ValueError: in place of the libraries' own errors.
    """
    try:
        yield
    except (OSError, ValueError, DatasetsError, pa.ArrowException, StopIteration) as error:
        cause = error.__cause__ or error
        reason = str(cause).strip() or type(cause).__name__
        raise ValueError(f"{argument}: {str(value)!r} could not be loaded: {reason}{hint}") from error


# ---- splits ----


def load_splits(
    args: DataArguments,
    builtin: Callable[[], Dataset],
    load_folder: Callable[[str, str], Dataset] = load_class_folders,
    formats: Mapping[str, tuple[str, dict[str, Any]]] = FORMATS,
) -> Splits:
    """The splits of the user's data, or else the built-in data set as training data.

    Args:
        builtin: makes the task's built-in data set.
        load_folder: reads the folder of `--train_dir` and its like, given the flag's name and its value.
        formats: file extension -> builder of `datasets` that reads it, with its options.

    Returns:
        `train`, and `validation` and `test` if given; none is empty.

    Raises:
        ValueError: the flags contradict each other, or the data cannot be loaded or is empty.
        FileNotFoundError: a file or folder does not exist.
    """
    flags = data_flags(args)
    kinds = {name.rpartition("_")[2] for name in flags}
    if len(kinds) > 1:
        raise ValueError(f"data must come from one kind of source, got {' and '.join(flags)}; keep one kind")
    if flags and kinds != {"name"} and not any(name.startswith("train_") for name in flags):
        raise ValueError(f"{flags[0]} is given without training data; give train_{kinds.pop()} too")
    if not flags:
        splits = {"train": builtin()}
    elif args.dataset_name:
        splits = _load_named(args)
    else:
        load = partial(load_file, formats=formats) if kinds == {"file"} else load_folder
        splits = {name.partition("_")[0]: load(name, getattr(args, name)) for name in flags}
    for split, dataset in splits.items():
        if len(dataset) == 0:
            raise ValueError(f"the {split} data is empty; it must have at least one row")
    return splits


# ---- files ----


def load_file(argument: str, path: str, formats: Mapping[str, tuple[str, dict[str, Any]]] = FORMATS) -> Dataset:
    """The rows of a file.

    Args:
        argument: the flag that names the file, for messages.
        formats: as in `load_splits`.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, cannot be loaded, or is empty.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{argument}: there is no file {path!r}")
    extension = Path(path).suffix.lower()
    if extension not in formats:
        raise ValueError(f"{argument}: {path!r} must end in one of {', '.join(formats)}; convert it to one of these")
    name, options = formats[extension]
    separator = {".csv": "commas", ".tsv": "tabs"}.get(extension)
    rows = None
    if Path(path).stat().st_size > 0:
        try:
            with loading(argument, path, f"; are its columns separated by {separator}?" if separator else ""):
                rows = _build(name, path, options)
        except ValueError as error:
            if name != "parquet" and not _is_utf8(path):
                raise ValueError(f"{argument}: {path!r} is not encoded in UTF-8; save it in that encoding") from error
            raise
    if rows is None:
        raise ValueError(f"{argument}: {path!r} is empty; it must have at least one row")
    if separator:
        _check_separated(argument, path, rows.column_names, separator)
    return rows


def _build(name: str, path: str, options: Mapping[str, Any]) -> Dataset | None:
    """The rows of a file by a builder of `datasets`; `None` if there are none, which `load_dataset` raises an error for."""
    builder = load_dataset_builder(name, data_files={"train": path}, **options)
    builder.download_and_prepare()
    return builder.as_dataset(split="train") if builder.info.splits["train"].num_examples else None


def _is_utf8(path: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            while file.read(2**20):
                pass
    except UnicodeDecodeError:
        return False
    return True


def _check_separated(argument: str, path: str, columns: Sequence[str], separator: str) -> None:
    """Raise ValueError if pandas read a file with other separators, or with texts that contain separators."""
    if any(name.startswith("__index_level_") for name in columns):
        raise ValueError(
            f"{argument}: {path!r} has rows with more cells than its first line has names; put quotes around texts that "
            f"contain {separator}"
        )
    if len(columns) == 1 and any(sign in columns[0] for sign in ";\t|"):
        raise ValueError(f"{argument}: the columns of {path!r} must be separated by {separator}, got {columns[0]!r}")


# ---- data sets with several splits ----


def load_named(argument: str, name: str, configuration: str | None = None) -> DatasetDict:
    """All splits of a data set on the Hub, or of a local folder; a single one without a name is called train.

    Raises:
        ValueError: it cannot be loaded.
    """
    with loading(argument, name):
        if any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):  # Dataset.save_to_disk
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
        if source in available:
            splits[split] = available[source]
        elif given or split == "train":
            raise ValueError(
                f"{split}_split_name: {name!r} has no split {given or 'train'!r}; name one of these: {', '.join(available)}"
            )
    return splits
