"""Every code block of the documentation runs, page by page, in a folder of the page's own.

Python runs as it stands, with names kept from block to block. Commands of `maxsup-hf` run on few rows and for two steps, or
have all of their flags checked (`tests.documentation.commands`). A block that begins with a comment like `# my_loss.py` is
also written to a file of that name.
"""

import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.myst import CodeBlockParser

from maxsup_hf.losses import _registry
from tests.documentation.commands import ROOT, Driver, execute, lines
from tests.documentation.world import fill_hub, write_files
from tests.hub.conftest import environment
from tests.hub.server import Hub

PAGES = ["README.md", "CONTRIBUTING.md", "examples/README.md", "model_cards/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if "api" not in path.parts)
# Each line of examples/README.md runs in tests/test_examples.py or tests/trainer/test_launch_configs.py.
RUN = [page for page in PAGES if page != "examples/README.md"]
# Commands that are run for real; those of other pages are checked.
REAL = {
    "README.md": {"train", "push"},
    "docs/quickstart.md": {"train", "losses"},
    "docs/guides/compare.md": {"train", "compare", "analyze"},
    "docs/guides/predict.md": {"train", "predict"},
    "docs/guides/publish.md": {"train", "push", "card"},
    "docs/extend/loss.md": {"train", "losses"},
    "docs/reference/cli.md": {"losses", "bench"},
}
# What such commands leave behind.
MADE = {
    "docs/guides/predict.md": ["answers.csv", "predictions.csv"],
    "docs/guides/compare.md": ["outputs/compare-image-classification/report.html", "outputs/analysis-2/report.html"],
}
PUSHED = {"README.md", "docs/guides/publish.md"}
# Fences that are read and not run.
READ = ("text", "bibtex", "diff")

run_python = PythonEvaluator()


def python(example):
    write(example.parsed)
    run_python(example)


def shell(example):
    for line in lines(example.parsed):
        execute(line, example.namespace["driver"], REAL.get(example.namespace["page"], ()))


def settings(example):
    assert isinstance(yaml.safe_load(example.parsed), dict)
    write(example.parsed)


def write(block):
    """Write a block to the file that its first line names."""
    name = re.match(r"# ([\w./]+\.(?:py|yaml))\n", block)
    if name:
        Path(name[1]).write_text(block)


KINDS = {"python": python, "bash": shell, "yaml": settings}
SYBIL = Sybil([CodeBlockParser(kind, evaluator) for kind, evaluator in KINDS.items()])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub() as hub:
        fill_hub(hub, tmp_path_factory.mktemp("hub"))
        yield hub


@pytest.fixture(scope="module")
def driver(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    found = environment(hub, folder) | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    driver = Driver(found, folder / "log")
    yield driver
    driver.close()


@pytest.mark.parametrize("page", RUN)
def test_every_block_runs(page, driver, hub, world, tmp_path, monkeypatch):
    hub.repos.pop("me/digits", None)
    folder = tmp_path / "page"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(_registry, "_SPECS", dict(_registry._SPECS))  # losses of a page stay its own
    document = SYBIL.parse(ROOT / page)
    # Checkpoints name the classes of the arguments by their module: the page is one while it runs.
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    document.namespace = vars(module)
    document.namespace.update(page=page, driver=driver)
    for example in document.examples():
        example.evaluate()
    assert all(Path(made).stat().st_size > 1_000 for made in MADE.get(page, []))
    if page in PUSHED:
        assert {"config.json", "model.safetensors", "README.md"} <= set(hub.repos["me/digits"].files("main"))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_kind_that_is_run_or_read(page):
    fences = re.findall(r"^ *`{3,}([^`\n]+)\n", (ROOT / page).read_text(), flags=re.MULTILINE)
    unknown = {fence for fence in fences if not fence.startswith("{")} - {*KINDS, *READ}
    assert not unknown
