"""A release, checked: sdist and wheel are built, described well, and the wheel trains in an empty environment.

python tests/release_check.py [--python python3.12] [--transformers pinned|lowest|newest] [--tests tests/losses …]

Needs `pip install -e '.[release]'`. `pinned` installs the versions of constraints.txt; `lowest` and `newest` are the ends of
the range that pyproject.toml gives transformers, the rest as pip chooses with them. The pytest arguments after `--tests` are
run against the installed wheel. torch is constraints.txt's in any case: on Linux a CPU build, if pip is shown one
(PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL), else several GB with CUDA. The Hub is never asked.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = ["--max_steps", "5", "--max_train_samples", "256", "--max_eval_samples", "64", "--output_dir", "out"]


def run(*words: object, cwd: Path, **environment: str) -> str:
    """Standard output of a command, which must succeed. It sees nothing of this checkout and of this Python."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(word) for word in words]
    print("+", *command, flush=True)
    result = subprocess.run(command, cwd=cwd, env=inherited | environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"status {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}")
    return result.stdout


def build(folder: Path, *flags: str) -> tuple[Path, Path]:
    """sdist, and the wheel that is built from it, in `folder`; both pass `twine check --strict`."""
    run(sys.executable, "-m", "build", "--outdir", folder, *flags, ROOT, cwd=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel, cwd=folder)
    return sdist, wheel


def constraints(transformers: str) -> str:
    """What is handed to pip as a file of constraints."""
    pinned = (ROOT / "constraints.txt").read_text()
    if transformers == "pinned":
        return pinned
    (torch,) = re.findall(r"^torch==.*$", pinned, flags=re.MULTILINE)
    (lowest,) = re.findall(r'"transformers>=([\d.]+),', (ROOT / "pyproject.toml").read_text())
    return f"{torch}\ntransformers=={lowest}.*\n" if transformers == "lowest" else f"{torch}\n"


def install(folder: Path, wheel: Path, python: str, transformers: str, extra: str = "") -> Path:
    """A new environment in `folder` with the wheel. Returns its folder of programs."""
    file = folder / "constraints.txt"
    file.write_text(constraints(transformers))
    run(python, "-m", "venv", folder / "venv", cwd=folder)
    programs = folder / "venv" / "bin"
    run(programs / "pip", "install", "-q", "-c", file, f"{wheel}{extra}", cwd=folder)
    run(programs / "pip", "check", cwd=folder)
    return programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--transformers", choices=("pinned", "lowest", "newest"), default="pinned")
    parser.add_argument("--tests", nargs=argparse.REMAINDER, default=[])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="release_check-") as name:
        folder = Path(name)
        _, wheel = build(folder)
        programs = install(folder, wheel, given.python, given.transformers, "[test]" if given.tests else "")
        work = folder / "work"
        work.mkdir()
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
        print(run(programs / "python", "-c", VERSIONS, cwd=work, **offline), end="")
        assert "maxsup\n" in run(programs / "maxsup-hf", "losses", cwd=work, **offline)
        run(programs / "maxsup-hf", "train", "image-classification", *TRAIN, cwd=work, **offline)
        results = json.loads((work / "out" / "all_results.json").read_text())
        print("eval_accuracy", results["eval_accuracy"], "train_loss", results["train_loss"])
        if given.tests:  # without maxsup_hf beside them, so that they import the wheel's
            for part in ("tests", "examples", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"):
                copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
                copy(ROOT / part, work / part)
            print(run(programs / "python", "-m", "pytest", *given.tests, cwd=work, **offline)[-1500:])
    print("passed")


VERSIONS = """
import sys, maxsup_hf, torch, transformers
assert maxsup_hf.__file__.startswith(sys.prefix), maxsup_hf.__file__
print("Python", sys.version.split()[0], "torch", torch.__version__, "transformers", transformers.__version__)
"""

if __name__ == "__main__":
    main()
