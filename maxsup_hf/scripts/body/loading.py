"""Where the rows come from: the Hub, files, image folders or the embedded data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from maxsup_hf.scripts.body.arguments import ScriptArguments, data_flags

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


@contextmanager
def loading(argument: str, value: Any) -> Iterator[None]:
    """Put the argument's name on whatever goes wrong while its value is loaded.

    Raises:
        ValueError: in place of the libraries' own errors.
    """
    try:
        yield
    except (OSError, ValueError, DatasetsError, pa.ArrowException, StopIteration) as error:
        cause = error.__cause__ or error
        reason = str(cause).strip() or type(cause).__name__
        raise ValueError(f"{argument}: {str(value)!r} could not be loaded: {reason}") from error


def load_splits(args: ScriptArguments, embedded: Callable[[], Dataset]) -> Splits:
    """The splits that the user brings, or the embedded data set.

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
        load = _load_file if kinds == {"file"} else _load_folder
        splits = {name.partition("_")[0]: load(name, getattr(args, name)) for name in flags}
    for split, dataset in splits.items():
        if len(dataset) == 0:
            raise ValueError(f"the {split} data is empty; it must have at least one row")
    return splits


def _load_file(argument: str, path: str) -> Dataset:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{argument}: there is no file {path!r}")
    extension = Path(path).suffix.lower()
    if extension not in FORMATS:
        raise ValueError(f"{argument}: {path!r} must end in one of {', '.join(FORMATS)}; convert it to one of these")
    builder, options = FORMATS[extension]
    empty = ValueError(f"{argument}: {path!r} is empty; it must have at least one row")
    if Path(path).stat().st_size == 0:
        raise empty
    with loading(argument, path):
        try:
            return load_dataset(builder, data_files={"train": path}, split="train", **options)
        except ValueError as error:
            if "corresponds to no data" not in str(error):
                raise
    raise empty


def _load_folder(argument: str, path: str) -> Dataset:
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{argument}: there is no folder {path!r}; expected one with a subfolder of images a class")
    with loading(argument, path):
        # named as one split, or datasets would make its own of subfolders that are called train or test
        files = {"train": str(Path(path) / "**")}
        return load_dataset("imagefolder", data_files=files, split="train", drop_labels=False)


def _load_named(args: ScriptArguments) -> Splits:
    name = args.dataset_name
    assert name is not None
    with loading("dataset_name", name):
        if any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):  # Dataset.save_to_disk
            loaded = load_from_disk(name)
        else:
            loaded = load_dataset(name, args.dataset_config_name)
    found = loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
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
