"""A report as one self-contained HTML file: text, tables and figures. Opening it fetches nothing."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from maxsup_hf.output.files import replacing
from maxsup_hf.output.tables import Table
from maxsup_hf.output.versions import versions

MEDIA_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
PACKAGES = ("numpy", "scikit-learn", "matplotlib", "captum")  # those that compute metrics and figures


@dataclass(frozen=True)
class Picture:
    """A file that `figures.save` wrote: svg or png.

    Attributes:
        path: of the file.
        caption: below the picture.
        alt: text for readers who cannot see the picture. Default: the caption.
        wide: two columns wide; on a phone it scrolls.
        photo: its colours stay as they are in dark mode, in which those of other figures are inverted.
    """

    path: Path
    caption: str
    alt: str = ""
    wide: bool = False
    photo: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and its content; all text is plain, and will be escaped.

    Attributes:
        title: the heading.
        text: paragraphs.
        tables, figures: in this order after the text.
        files: name -> text that unfolds on a click: configurations, logs.
        folded: tables that unfold on a click on their caption.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Picture] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    folded: Sequence[Table] = ()


def write_report(
    path: str | Path,
    title: str,
    sections: Sequence[Section],
    *,
    summary: Sequence[str] = (),
    notes: Sequence[str] = (),
    footer: Sequence[str] | None = None,
) -> Path:
    """Write the report.

    Args:
        path: of the HTML file.
        title: heading and window title.
        sections: the content.
        summary: paragraphs below the title; the first one says what a reader wants to know.
        notes: what a reader must not miss, highlighted.
        footer: last paragraphs. Default: the versions of the packages.

    Returns:
        The path.

    Raises:
        ValueError: a table whose rows differ in length from its header, or a picture that is neither svg nor png.
    """
    for table in (table for section in sections for table in (*section.tables, *section.folded)):
        if any(len(row) != len(table.header) for row in table.rows):
            raise ValueError(f"table {table.caption!r}: every row needs {len(table.header)} cells, as many as its header")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["data_uri"] = data_uri
    environment.filters["bound"] = _bound
    source = files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    text = environment.from_string(source).render(
        title=title,
        sections=sections,
        summary=summary,
        notes=notes,
        footer=footer or ["Made with " + ", ".join(f"{name} {v}" for name, v in versions(*PACKAGES).items()) + "."],
    )
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return Path(path)


def _bound(line: str) -> str:
    """A line that does not break before a percent sign."""
    return line.replace(" %", "\u00a0%")


def file_name(i: int, name: str) -> str:
    """A name for the file of the i-th of several things, counted from 0."""
    return f"{i + 1}-" + re.sub(r"[^\w.-]+", "-", name)


def data_uri(path: Path) -> str:
    """A picture as a data URI. SVGs are embedded as images rather than markup, because their ids would collide."""
    media = MEDIA_TYPES.get(path.suffix.lower())
    if media is None:
        raise ValueError(f"pictures must be {' or '.join(MEDIA_TYPES)}, got {path.name!r}")
    return f"data:{media};base64,{base64.b64encode(path.read_bytes()).decode()}"
