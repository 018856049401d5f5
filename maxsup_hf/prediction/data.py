"""The rows to predict, and the file that predictions are written to."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset

from maxsup_hf.data.class_folders import readable_extensions
from maxsup_hf.data.columns import read_column
from maxsup_hf.data.files import FORMATS as FILE_FORMATS
from maxsup_hf.data.files import Reader, load_file
from maxsup_hf.data.images import as_images
from maxsup_hf.data.loading import load_named
from maxsup_hf.data.tags import read_conll
from maxsup_hf.output.files import plain, replacing

FORMATS = (".csv", ".jsonl", ".parquet")
READ: dict[str, Reader] = {**FILE_FORMATS, ".txt": ("text", {}), ".conll": read_conll}  # of text, a row for each line


def load_rows(args: Namespace) -> Dataset:
    """The rows of `--test_file`, `--test_dir` or `--dataset_name`.

    Raises:
        ValueError, FileNotFoundError: not exactly one of them is given, or it cannot be loaded.
    """
    given = [name for name in ("test_file", "test_dir", "dataset_name") if getattr(args, name)]
    if len(given) != 1:
        raise ValueError(f"give one of --test_file, --test_dir and --dataset_name, got {' and '.join(given) or 'none'}")
    if args.test_file:
        rows = load_file("test_file", args.test_file, READ, args.csv_delimiter)
    elif args.test_dir:
        rows = load_image_folder("test_dir", args.test_dir)
    else:
        splits = load_named("dataset_name", args.dataset_name, args.dataset_config_name)
        split = args.split or ("test" if "test" in splits else next(iter(splits)))
        if split not in splits:
            raise ValueError(f"split: {args.dataset_name!r} has no split {split!r}; name one of {', '.join(splits)}")
        rows = splits[split]
    return rows.select(range(min(len(rows), args.max_samples))) if args.max_samples else rows


def load_image_folder(argument: str, path: str) -> Dataset:
    """All images in a folder and its subfolders. Columns: `image`, `file`, and `label` (the subfolder) if none lies beside
    the subfolders.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, or no image in it.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{argument}: there is no folder {path!r}")
    known = readable_extensions()
    files = [file for file in sorted(root.rglob("*")) if file.suffix.lower() in known and file.name[:2] != "._"]
    if not files:
        raise ValueError(f"{argument}: there is no image in {path!r}")
    names = [str(file.relative_to(root)) for file in files]
    columns = {"image": [str(file) for file in files], "file": names}
    if all("/" in name for name in names):
        columns["label"] = [name.partition("/")[0] for name in names]
    return as_images(Dataset.from_dict(columns), "image", argument, "test")


def known_labels(rows: Dataset, column: str | None) -> list[Any] | None:
    """The values of a label column, names for a ClassLabel; `None` without such a column."""
    if column is None or column not in rows.column_names:
        return None
    values = read_column(rows, column).to_pylist()
    feature = rows.features[column]
    return feature.int2str(values) if isinstance(feature, ClassLabel) else values


def write_rows(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write predictions as csv, jsonl or parquet, by the extension. In csv, lists are joined by spaces.

    Raises:
        ValueError: another extension.
    """
    suffix = check_output(path)
    with replacing(path) as unfinished:
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist([plain(row) for row in rows]), unfinished)
        elif suffix == ".jsonl":
            lines = (json.dumps(plain(row), ensure_ascii=False, allow_nan=False) for row in rows)
            unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        else:
            with unfinished.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def check_output(path: str, overwrite: bool = True, argument: str = "output_file") -> str:
    """The extension of an output file.

    Raises:
        ValueError: it is not one of `FORMATS`.
        FileNotFoundError: its folder does not exist.
        FileExistsError: the file exists, and `overwrite` is false.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{argument}: {path!r} must end in one of {', '.join(FORMATS)}")
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"{argument}: the folder of {path!r} does not exist")
    if not overwrite and Path(path).exists():
        raise FileExistsError(f"{argument}: {path!r} exists; name another file, or give --overwrite")
    return suffix


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value
