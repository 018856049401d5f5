"""The rows to predict, and the file that predictions are written to."""

from __future__ import annotations

import csv
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset

from maxsup_hf.data.answers import SQUAD_FORMATS, is_squad
from maxsup_hf.data.class_folders import load_image_folder
from maxsup_hf.data.columns import identifier_columns, read_column
from maxsup_hf.data.files import Reader, is_saved, load_file, load_saved
from maxsup_hf.data.loading import load_named, sliced, with_dotted_columns
from maxsup_hf.data.tags import read_conll
from maxsup_hf.output.files import plain, replacing
from maxsup_hf.output.secrets import masked

FORMATS = (".csv", ".jsonl", ".parquet")
# A text file has a row in each line; the words of a CoNLL file need no tags.
READ: dict[str, Reader] = {**SQUAD_FORMATS, ".txt": ("text", {}), ".conll": partial(read_conll, tagged=False)}


def load_rows(args: Namespace) -> Dataset:
    """The rows of `--test_file`, `--test_dir` or `--dataset_name`.

    Raises:
        ValueError, FileNotFoundError: not exactly one of them is given, or it cannot be loaded.
    """
    given = [name for name in ("test_file", "test_dir", "dataset_name") if getattr(args, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give one of --test_file, --test_dir and --dataset_name, got {' and '.join(given) or 'none'}")
    unused = next((name for name in ("split", "dataset_config_name") if getattr(args, name) and not args.dataset_name), None)
    if unused:
        raise ValueError(f"{unused} is for --dataset_name, got {given[0]}")
    if args.test_file is not None:
        rows = load_file("test_file", args.test_file, READ, args.csv_delimiter)
    elif args.test_dir is not None:
        load = load_saved if is_saved(args.test_dir) else load_image_folder
        rows = load("test_dir", args.test_dir)
    else:
        splits = load_named("dataset_name", args.dataset_name, args.dataset_config_name)
        split = args.split or ("test" if "test" in splits else next(iter(splits)))
        name = split.partition("[")[0]
        if name not in splits:
            raise ValueError(f"split: {args.dataset_name!r} has no split {name!r}; name one of {', '.join(splits)}")
        rows = sliced("split", splits[name], split)
        if len(rows) == 0:
            raise ValueError(f"split: {split!r} has no rows")
    rows = with_dotted_columns(rows, args)
    return rows.select(range(min(len(rows), args.max_samples))) if args.max_samples else rows


def identifiers(rows: Dataset) -> list[dict[str, Any]]:
    """What each row is known by: the values of `identifier_columns`."""
    names = identifier_columns(rows)
    if not names:
        return [{} for _ in range(len(rows))]
    columns = (read_column(rows, name).to_pylist() for name in names)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def known_labels(rows: Dataset, column: str | None) -> list[Any] | None:
    """The values of a label column, names for a ClassLabel; `None` without such a column."""
    if column is None or column not in rows.column_names:
        return None
    values = read_column(rows, column).to_pylist()
    feature = rows.features[column]
    if is_squad(feature):
        return [value["text"] if value else [] for value in values]
    return feature.int2str(values) if isinstance(feature, ClassLabel) else values


def write_rows(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write predictions as csv, jsonl or parquet, by the extension. In csv, lists are joined by spaces.

    Raises:
        ValueError: another extension.
    """
    suffix = check_output(path)
    with replacing(path) as unfinished:
        if suffix == ".parquet":
            # masked before it is compressed
            visible = [json.loads(masked(json.dumps(plain(row), ensure_ascii=False))) for row in rows]
            pq.write_table(pa.Table.from_pylist(visible), unfinished)
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
        IsADirectoryError: it is a folder.
        FileExistsError: the file exists, and `overwrite` is false.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"{argument}: {path!r} must end in one of {', '.join(FORMATS)}")
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"{argument}: the folder of {path!r} does not exist")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{argument}: {path!r} is a folder; name a file")
    if not overwrite and Path(path).exists():
        raise FileExistsError(f"{argument}: {path!r} exists; name another file, or give --overwrite")
    return suffix


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value
