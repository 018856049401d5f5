"""Tables of text, and Markdown made from them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Cells as they will be read; the first cell of each row is the row's name.

    Attributes:
        header: names of the columns.
        rows: a sequence of cells for each row.
        caption: above the table.
        bold: (row, column) of the cells that stand out, counted from 0.
    """

    header: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    bold: Collection[tuple[int, int]] = ()


def minus(number: str) -> str:
    """A formatted number with the typographic minus sign."""
    return number.replace("-", "−")


def markdown(table: Table) -> str:
    """The table without its caption; a `|` in a cell is escaped."""
    cells = [[_escape(cell) for cell in row] for row in table.rows]
    for row, column in table.bold:
        cells[row][column] = f"**{cells[row][column]}**"
    rule = ["---", *("---:" for _ in table.header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (map(_escape, table.header), rule, *cells))


def _escape(cell: Any) -> str:
    return str(cell).replace("|", "\\|")
