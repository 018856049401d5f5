"""Reading rows from files."""

from __future__ import annotations

import codecs
import glob
import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetsError

from maxsup_hf.output.messages import shortened

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
PLAIN_ERRORS = (OSError, ValueError, DatasetsError, pa.ArrowException)  # whose messages need no name of their type


def read_text(path: str) -> str:
    """The text of a file in UTF-8, which may be compressed (.gz)."""
    content = Path(path).read_bytes()
    return (gzip.decompress(content) if path.endswith(".gz") else content).decode("utf-8-sig")


@contextmanager
def loading(argument: str, value: Any, hint: str = "") -> Iterator[None]:
    """Name the argument, and end with a hint, in the error of whatever fails while its value is loaded.

    Raises:
        ValueError: in place of the libraries' own errors.
    """
    try:
        yield
    except Exception as error:  # of any type: libraries raise all kinds on unusual input
        cause = error.__cause__ or error
        reason = str(cause).strip() or type(cause).__name__
        if not isinstance(cause, PLAIN_ERRORS):
            reason = f"{type(cause).__name__}: {reason}"
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
    if is_saved(path):
        return load_saved(argument, path)
    paths = expand(argument, path)
    parts = [_load_one(argument, each, formats, delimiter) for each in paths]
    other = next((i for i, part in enumerate(parts) if set(part.column_names) != set(parts[0].column_names)), None)
    if other is not None:  # missing columns would be filled with null
        raise ValueError(
            f"{argument}: all files need the same columns, but {paths[0]!r} has {', '.join(parts[0].column_names)} and "
            f"{paths[other]!r} has {', '.join(parts[other].column_names)}"
        )
    with loading(argument, path, "; do all files have the same types of columns?"):
        return concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def is_saved(path: str) -> bool:
    """Whether a path is a folder of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    return any((Path(path) / file).is_file() for file in ("dataset_dict.json", "state.json"))


def load_saved(argument: str, path: str) -> Dataset:
    """The rows of a folder of `Dataset.save_to_disk`.

    Raises:
        ValueError: it cannot be loaded, or holds several splits.
    """
    with loading(argument, path):
        saved = load_from_disk(path)
    if isinstance(saved, DatasetDict):
        raise ValueError(f"{argument}: {path!r} holds the splits {', '.join(saved)}; give it as --dataset_name {path}")
    return saved


def expand(argument: str, path: str) -> list[str]:
    """The files that a path, several comma-separated ones, or a pattern names.

    Raises:
        FileNotFoundError, IsADirectoryError: there is none.
    """
    if Path(path).is_file():
        return [path]
    if Path(path).is_dir():
        raise IsADirectoryError(f"{argument}: {path!r} is a folder, but expected a file or a pattern such as {path}/*.csv")
    found = []
    for part in path.split(","):
        matches = sorted(match for match in glob.glob(part.strip()) if Path(match).is_file())
        if not matches:
            raise FileNotFoundError(f"{argument}: there is no file {part.strip()!r}")
        found += matches
    return list(dict.fromkeys(found))


def _load_one(argument: str, path: str, formats: Formats, delimiter: str | None) -> Dataset:
    extension = Path(path.lower().removesuffix(".gz")).suffix
    if extension not in formats:
        raise ValueError(f"{argument}: {path!r} must end in one of {', '.join(formats)}; convert it to one of these")
    reader = formats[extension]
    if extension in (".json", ".jsonl"):
        _check_json(argument, path)
    separator = (delimiter or {".csv": ",", ".tsv": "\t"}[extension]) if extension in (".csv", ".tsv") else None
    hint = "; is every row an object with the same names?" if extension in (".json", ".jsonl") else ""
    if separator is not None:
        sign = SIGNS.get(separator, repr(separator))
        hint = f"; are its columns separated by {sign}? --csv_delimiter names another separator"
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
    if name == "parquet" and pq.read_metadata(path).num_rows == 0:
        return None
    separated = {} if separator is None else {"sep": separator}
    builder = load_dataset_builder(name, data_files={"train": glob.escape(path)}, **{**options, **separated})
    builder.download_and_prepare()
    return builder.as_dataset(split="train") if builder.info.splits["train"].num_examples else None


def _check_json(argument: str, path: str) -> None:
    """Raise ValueError unless the first row of a file is an object: pyarrow crashes on `null`, and `datasets` makes a column
    `text` of a list of strings."""
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file, loading(argument, path):
        start = file.read(2**16).removeprefix(codecs.BOM_UTF8)
    start = b"".join(start.split())
    if start and not start.startswith((b"{", b"[{", b"[]")):
        raise ValueError(
            f'{argument}: the rows of {path!r} must be objects, as {{"text": …}}, got '
            f"{shortened(start.decode('utf-8', 'replace'), 20)}"
        )


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
