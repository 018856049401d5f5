"""Where the rows come from: the Hub, files, folders or the embedded data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from maxsup_hf.data.arguments import DataArguments, data_flags

Splits = dict[str, Dataset]
SPLITS = ("train", "validation", "test")
USUAL_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev", "eval"), "test": ("test",)}

# Only an empty cell is a missing value: "NA" and "None" are words (a country code, an answer) to everyone but pandas.
CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", CSV_OPTIONS),
    ".tsv": ("csv", {**CSV_OPTIONS, "sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
TEXT_FORMATS = {**FORMATS, ".txt": ("text", {"sample_by": "document"})}  # one text, in column `text`


@contextmanager
def loading(argument: str, value: Any, hint: str = "") -> Iterator[None]:
    """Put the argument's name, and at the end a hint, on whatever goes wrong while its value is loaded.

    Raises:
        ValueError: in place of the libraries' own errors.
    """
    try:
        yield
    except (OSError, ValueError, DatasetsError, pa.ArrowException, StopIteration) as error:
        cause = error.__cause__ or error
        reason = str(cause).strip() or type(cause).__name__
        raise ValueError(f"{argument}: {str(value)!r} could not be loaded: {reason}{hint}") from error


def load_class_folders(argument: str, path: str) -> Dataset:
    """The images of a folder with a subfolder for each class. Columns: `image`, `label`.

    Args:
        argument: the flag that names the folder, for messages.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, it holds splits in place of classes, or it cannot be loaded.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{argument}: there is no folder {path!r}; expected one with a subfolder of images a class")
    inside = sorted(folder for folder in Path(path).iterdir() if folder.is_dir())
    usual = [name for names in USUAL_NAMES.values() for name in names]
    if inside and all(folder.name.lower() in usual and any(x.is_dir() for x in folder.iterdir()) for folder in inside):
        raise ValueError(
            f"{argument}: {path!r} holds a folder for each split ({', '.join(x.name for x in inside)}), not for each class; "
            f"give one of them ({argument} {inside[0]}), or all as --dataset_name {path}"
        )
    if not inside:
        raise ValueError(
            f"{argument}: {path!r} has no subfolders; put the images of each class into one of its own, as "
            f"{Path(path) / 'cat' / '1.jpeg'}"
        )
    empty = [folder.name for folder in inside if not any(x.is_file() for x in folder.rglob("[!.]*"))]
    if empty:
        listed = ", ".join(empty[:5])
        raise ValueError(f"{argument}: a class needs images, but there is none in {listed} of {path!r}; fill or remove it")
    with loading(argument, path):
        # named as one split, or datasets would make its own of subfolders that are called train or test
        files = {"train": str(Path(path) / "**")}
        return load_dataset("imagefolder", data_files=files, split="train", drop_labels=False)


def load_splits(
    args: DataArguments,
    embedded: Callable[[], Dataset],
    load_folder: Callable[[str, str], Dataset] = load_class_folders,
    formats: Mapping[str, tuple[str, dict[str, Any]]] = FORMATS,
) -> Splits:
    """The splits that the user brings, or the embedded data set.

    Args:
        embedded: makes the task's embedded data set.
        load_folder: reads what `--train_dir` and its like name, from the flag and its value.
        formats: extension of a file -> builder of `datasets` that reads it, with its options.

    Returns:
        `train`, and `validation` and `test` where there are any; none is empty.

    Raises:
        ValueError: flags that contradict each other, or data that cannot be loaded, or is empty.
        FileNotFoundError: a file or folder does not exist.
    """
    flags = data_flags(args)
    kinds = {name.rpartition("_")[2] for name in flags}
    if len(kinds) > 1:
        raise ValueError(f"data must come from one kind of source, got {' and '.join(flags)}; keep one kind")
    if flags and kinds != {"name"} and not any(name.startswith("train_") for name in flags):
        kind = kinds.pop()
        raise ValueError(f"{flags[0]} is given without training data; give train_{kind} too")
    if not flags:
        splits = {"train": embedded()}
    elif args.dataset_name:
        splits = _load_named(args)
    else:
        load = partial(load_file, formats=formats) if kinds == {"file"} else load_folder
        splits = {name.partition("_")[0]: load(name, getattr(args, name)) for name in flags}
    for split, dataset in splits.items():
        if len(dataset) == 0:
            raise ValueError(f"the {split} data is empty; it must have at least one row")
    return splits


def load_file(argument: str, path: str, formats: Mapping[str, tuple[str, dict[str, Any]]] = FORMATS) -> Dataset:
    """The rows of a file.

    Args:
        argument: the flag that names the file, for messages.
        formats: as in `load_splits`.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it cannot be loaded, or is empty.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{argument}: there is no file {path!r}")
    extension = Path(path).suffix.lower()
    if extension not in formats:
        raise ValueError(f"{argument}: {path!r} must end in one of {', '.join(formats)}; convert it to one of these")
    builder, options = formats[extension]
    empty = ValueError(f"{argument}: {path!r} is empty; it must have at least one row")
    if Path(path).stat().st_size == 0:
        raise empty
    separator = {".csv": "commas", ".tsv": "tabs"}.get(extension)
    try:
        with loading(argument, path, f"; are its columns separated by {separator}?" if separator else ""):
            found = load_dataset(builder, data_files={"train": path}, split="train", **options)
    except ValueError as error:
        if "corresponds to no data" in str(error):
            raise empty from error
        if "codec can't decode" in str(error):
            raise ValueError(f"{argument}: {path!r} is not UTF-8; save it as that") from error
        raise
    if separator:
        _check_separated(argument, path, found.column_names, separator)
    return found


def _check_separated(argument: str, path: str, columns: Sequence[str], separator: str) -> None:
    """Raises:
    ValueError: what pandas makes of other separators, and of texts that hold separators.
    """
    if any(name.startswith("__index_level_") for name in columns):
        raise ValueError(
            f"{argument}: {path!r} has rows with more cells than its first line has names; a text with {separator} in it "
            "needs quotes around it"
        )
    if len(columns) == 1 and any(sign in columns[0] for sign in ";\t|"):
        raise ValueError(f"{argument}: the columns of {path!r} must be separated by {separator}, got {columns[0]!r}")


def load_named(argument: str, name: str, configuration: str | None = None) -> DatasetDict:
    """All splits of a data set on the Hub, or of a local folder; a single one that has no name is called train.

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
    name = args.dataset_name
    assert name is not None
    found = load_named("dataset_name", name, args.dataset_config_name)
    splits = {}
    for split in SPLITS:
        given = getattr(args, f"{split}_split_name")
        source = given or next((usual for usual in USUAL_NAMES[split] if usual in found), None)
        if source in found:
            splits[split] = found[source]
        elif given or split == "train":
            raise ValueError(
                f"{split}_split_name: {name!r} has no split {given or 'train'!r}; name one of these: {', '.join(found)}"
            )
    return splits
