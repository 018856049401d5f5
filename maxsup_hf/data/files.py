"""Reading rows from files."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetsError

# How a file is read: by a builder of `datasets` with its options, or by a function of its path.
Reader = tuple[str, dict[str, Any]] | Callable[[str], Dataset]
Formats = Mapping[str, Reader]

# Only an empty cell is a missing value. To pandas "NA" and "None" are missing too, but they are words: a country, an answer.
CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}
FORMATS: dict[str, Reader] = {
    ".csv": ("csv", CSV_OPTIONS),
    ".tsv": ("csv", {**CSV_OPTIONS, "sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
TEXT_FORMATS: dict[str, Reader] = {**FORMATS, ".txt": ("text", {"sample_by": "document"})}  # one text, in the column `text`
SIGNS = {",": "commas", "\t": "tabs"}


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


def load_file(argument: str, path: str, formats: Formats = FORMATS, delimiter: str | None = None) -> Dataset:
    """The rows of a file, of several files, or of a folder of `Dataset.save_to_disk`.

    Args:
        argument: the flag that names the file, for messages.
        path: a file, which may end in .gz; several, comma-separated; or a pattern such as `data/*.csv`.
        formats: file extension -> what reads it.
        delimiter: what separates the columns of csv files. Default: a comma.

    Raises:
        FileNotFoundError, ValueError: a file does not exist, cannot be loaded, or is empty.
    """
    if (Path(path) / "state.json").is_file() or (Path(path) / "dataset_dict.json").is_file():
        return _load_saved(argument, path)
    paths = [path] if Path(path).is_file() else _expand(argument, path)
    parts = [_load_one(argument, each, formats, delimiter) for each in paths]
    other = next((i for i, part in enumerate(parts) if set(part.column_names) != set(parts[0].column_names)), None)
    if other is not None:  # missing columns would be filled with null
        raise ValueError(
            f"{argument}: all files need the same columns, but {paths[0]!r} has {', '.join(parts[0].column_names)} and "
            f"{paths[other]!r} has {', '.join(parts[other].column_names)}"
        )
    with loading(argument, path, "; do all files have the same types of columns?"):
        return concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def _load_saved(argument: str, path: str) -> Dataset:
    with loading(argument, path):
        saved = load_from_disk(path)
    if isinstance(saved, DatasetDict):
        raise ValueError(f"{argument}: {path!r} holds the splits {', '.join(saved)}; give it as --dataset_name {path}")
    return saved


def _expand(argument: str, path: str) -> list[str]:
    found = []
    for part in path.split(","):
        matches = sorted(glob.glob(part.strip()))
        if not matches:
            raise FileNotFoundError(f"{argument}: there is no file {part.strip()!r}")
        found += matches
    return list(dict.fromkeys(found))


def _load_one(argument: str, path: str, formats: Formats, delimiter: str | None) -> Dataset:
    extension = Path(path.lower().removesuffix(".gz")).suffix
    if extension not in formats:
        raise ValueError(f"{argument}: {path!r} must end in one of {', '.join(formats)}; convert it to one of these")
    reader = formats[extension]
    separator = (delimiter or {".csv": ",", ".tsv": "\t"}[extension]) if extension in (".csv", ".tsv") else None
    hint = "" if separator is None else f"; are its columns separated by {SIGNS.get(separator, repr(separator))}?"
    rows = None
    if Path(path).stat().st_size > 0:
        try:
            with loading(argument, path, hint):
                rows = reader(path) if callable(reader) else _build(*reader, path, separator)
        except ValueError as error:
            if extension != ".parquet" and not path.endswith(".gz") and not _is_utf8(path):
                raise ValueError(f"{argument}: {path!r} is not encoded in UTF-8; save it in that encoding") from error
            raise
    if rows is None or len(rows) == 0:
        raise ValueError(f"{argument}: {path!r} is empty; it must have at least one row")
    if separator is not None:
        _check_separated(argument, path, rows.column_names, separator)
    return rows


def _build(name: str, options: Mapping[str, Any], path: str, separator: str | None) -> Dataset | None:
    """The rows of a file by a builder of `datasets`; `None` if there are none, which `load_dataset` raises an error for."""
    separated = {} if separator is None else {"sep": separator}
    builder = load_dataset_builder(name, data_files={"train": path}, **{**options, **separated})
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
    name = SIGNS.get(separator, repr(separator))
    if any(column.startswith("__index_level_") for column in columns):
        raise ValueError(
            f"{argument}: {path!r} has rows with more cells than its first line has names; put quotes around texts that "
            f"contain {name}"
        )
    other = next((sign for sign in ";\t|," if sign != separator and len(columns) == 1 and sign in columns[0]), None)
    if other is not None:
        raise ValueError(
            f"{argument}: the columns of {path!r} must be separated by {name}, got {columns[0]!r}; for another separator "
            f"give --csv_delimiter {other!r}"
        )
