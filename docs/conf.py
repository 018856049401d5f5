"""Settings of the documentation: `sphinx-build -qW --keep-going docs build/docs`."""

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the extensions beside this file

project = "maxsup_hf"
version = release = installed("maxsup-hf")
extensions = [
    "myst_parser",
    "sphinx.ext.apidoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "from_code",
]
html_theme = "furo"
html_title = f"maxsup_hf {release}"
html_copy_source = False
smartquotes = False  # "--flag" stays as it is typed

myst_enable_extensions = ["dollarmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3

# ---- the API, from docstrings ----

default_role = "code"  # docstrings say `x`, as Markdown does
napoleon_use_ivar = True  # "Attributes:" describes fields that are listed already
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
apidoc_modules = [
    {
        "path": str(HERE.parent / "maxsup_hf"),
        "destination": "reference/api",
        "separate_modules": True,
        "module_first": True,
        # modules of the evaluate library, each a folder of its own; `maxsup_hf.metrics` has what is in them
        "exclude_patterns": ["**/metrics/maxsup_*", "**/trl_classes.py"],  # the last needs TRL
    }
]


def link_outside(app, docname, source):
    """Turn links to Markdown outside this folder, which is not a page, into downloads. On the code host they stay links."""
    source[0] = re.sub(r"\]\((\.\./\.\./[^)#]+\.md)\)", r"](path:\1)", source[0])


def escape_bars(app, what, name, obj, options, lines):
    """Docstrings write |x| for an absolute value, which reStructuredText takes for a substitution. Code keeps its bars."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("`")
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            lines[i] = "`".join(parts)


def short_signature(app, what, name, obj, options, signature, returned):
    """Training arguments have over a hundred fields, which transformers describes."""
    return ("(output_dir, ...)", None) if what == "class" and signature and len(signature) > 2000 else None


def setup(app):
    app.connect("source-read", link_outside)
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("autodoc-process-signature", short_signature)
