"""What a line of a shell block asks for, and how it is run or checked."""

import importlib.util
import itertools
import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).parents[2]
# What keeps a command short.
SHORT = {
    "train": ["--max_steps", "2", "--max_train_samples", "60", "--max_eval_samples", "30", "--disable_tqdm", "true"],
    "compare": ["--losses", "maxsup", "--seeds", "0", "--max_steps", "2", "--max_eval_samples", "30", "--jobs", "1"],
    "analyze": ["--images", "1", "--cache_dir", "cache"],
    "bench": ["--shapes", "8x5", "--linear_shapes", "8x4x5", "--rounds", "1", "--no-compile"],
}
# Programs of the development tools, and packages that they come with.
TOOLS = {
    "ruff": "ruff",
    "mypy": "mypy",
    "lint-imports": "import-linter",
    "sphinx-build": "sphinx",
    "pre-commit": "pre-commit",
}


def lines(block):
    """Commands of a shell block: continued lines joined, comments left out, `a && b` as two."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        found += filter(None, (part.strip() for part in line.split(" && ")))
    return found


class Driver:
    """The process that runs the commands of one page."""

    def __init__(self, environment, log):
        self.log, self.checked = log, set()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.documentation.driver"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True,
        )  # fmt: skip

    def run(self, words, variables, checked):
        if checked:  # once is enough: flags are read the same way on every page
            if str(words) in self.checked:
                return
            self.checked.add(str(words))
        request = {"folder": str(Path.cwd()), "variables": variables, "words": words, "checked": checked}
        begin = self.log.stat().st_size
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer == "0\n", f"maxsup-hf {shlex.join(words)}: {answer!r}\n{self.log.read_text()[begin:][-4000:]}"

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def execute(line, driver, real):
    """Run a line, or check it where that takes more than seconds, a GPU or the Hub.

    Args:
        real: commands that `maxsup-hf` runs for real, the others are checked.
    """
    words = shlex.split(line)
    variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = words[len(variables) :]
    words = words[: words.index(">")] if ">" in words else words
    match words:
        case ["maxsup-hf", command, *_]:
            asks = "--help" in words or "--report_only" in words
            checked = command not in real or "--grid" in words  # a grid is many runs
            driver.run(words[1:] + ([] if asks else SHORT.get(command, [])), variables, checked)
        case ["accelerate", "launch", *flags]:
            check_launch(flags, driver)
        case ["python", "-m", "pytest", *arguments]:
            assert all((ROOT / path).exists() for path in arguments if path.startswith("tests")), line
        case ["python", "-m", "venv", ".venv"] | [".", ".venv/bin/activate"] | ["accelerate", "config"]:
            pass
        case ["python", "-m", module, *flags] if module.startswith("maxsup_hf.scripts."):
            driver.run(as_task(module, flags), variables, checked=True)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), line
        case ["python" | "sbatch" | "bash", path, *_]:
            assert (ROOT / path).is_file(), line
        case ["torchrun", "--nproc_per_node", _, path]:
            assert (ROOT / path).is_file(), line
        case ["pip", "install", *arguments]:
            check_install(arguments)
        case [".ci/run"]:
            assert (ROOT / ".ci" / "run").is_file()
        case [program, *arguments] if program in TOOLS:
            check_tool(program, arguments)
        case _:
            raise AssertionError(f"no test knows this command: {line}")


def as_task(module, flags):
    """A script of `maxsup_hf.scripts` as words of `maxsup-hf`. What needs a GPU is left out."""
    return [
        "train",
        module.rpartition(".")[2],
        *(flag for flag in flags if flag not in ("--bf16", "--fp16")),
        *SHORT["train"],
    ]


def check_launch(flags, driver):
    """accelerate reads the line and its config file, and the script its flags."""
    flags = [str(ROOT / flag) if flag.startswith("examples/") else flag for flag in flags]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(flags))
    if args.module:
        driver.run(as_task(args.training_script, args.training_script_args), {}, checked=True)
    else:
        assert Path(args.training_script).is_file(), args.training_script


def check_install(arguments):
    """The files and extras that pip is given are there."""
    for flag, value in itertools.pairwise(arguments):
        assert flag != "-c" or (ROOT / value).is_file(), value
    extras = {name for word in arguments for part in re.findall(r"\[([\w,]+)\]", word) for name in part.split(",")}
    assert extras <= set(metadata("maxsup-hf").get_all("Provides-Extra")), extras


def check_tool(program, arguments):
    required = " ".join(metadata("maxsup-hf").get_all("Requires-Dist"))
    assert TOOLS[program] in required, f"{program} is in no extra of pyproject.toml"
    assert program != "sphinx-build" or (ROOT / arguments[-2] / "conf.py").is_file(), arguments
