"""How results are written: complete files, valid JSON, Markdown tables, and the versions of the packages."""
