"""API reference out of the docstrings: `sphinx-build -qW --keep-going .sphinx build/api`."""

from pathlib import Path

project = "maxsup_hf"
extensions = ["sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "api/modules"
default_role = "code"  # docstrings say `x`, as Markdown does
napoleon_use_ivar = True  # "Attributes:" describes fields that are listed already
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
apidoc_modules = [
    {
        "path": str(Path(__file__).parents[1] / "maxsup_hf"),
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        # pages of the Hub's, each a folder of its own; `maxsup_hf.metrics` has what is in them
        "exclude_patterns": ["**/metrics/maxsup_*"],
    }
]
