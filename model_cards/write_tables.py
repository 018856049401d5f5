"""Write all tables in model_cards/results from the JSON files beside them.

python model_cards/write_tables.py
"""

from pathlib import Path

import beyond
import overview
import speed
import verdicts
from experiments import TITLES
from store import RESULTS, comparisons, read

from maxsup_hf.comparison.tables import markdown


def texts() -> dict[Path, str]:
    """Path -> Markdown of every table. The short runs share one."""
    found = {RESULTS / f"{name}.md": markdown(of) for name, of in comparisons().items() if name in TITLES}
    beyonds = {name: RESULTS / f"{name}-beyond.json" for name in TITLES}
    found |= {path.with_suffix(".md"): beyond.table(read(path)["values"]) for path in beyonds.values() if path.exists()}
    whole = {"verdicts.md": verdicts.text(), "bench_cpu.md": speed.text(), **overview.texts()}
    return found | {RESULTS / name: text for name, text in whole.items()}


if __name__ == "__main__":
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
