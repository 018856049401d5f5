"""Write all tables in model_cards/results from the JSON files beside them.

python model_cards/write_tables.py
"""

from pathlib import Path

import beyond
import speed
import verdicts
from store import RESULTS, comparisons, read

from maxsup_hf.comparison.tables import markdown


def texts() -> dict[Path, str]:
    """Path -> Markdown of every table."""
    found = {RESULTS / f"{name}.md": markdown(of) for name, of in comparisons().items()}
    found |= {path.with_suffix(".md"): beyond.table(read(path)["values"]) for path in RESULTS.glob("*-beyond.json")}
    return found | {RESULTS / "verdicts.md": verdicts.text(), RESULTS / "bench_cpu.md": speed.text()}


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
