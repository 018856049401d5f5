"""How results and messages are written: complete files, valid JSON, Markdown tables, and nothing secret."""
