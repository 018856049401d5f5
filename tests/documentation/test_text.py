"""What the documentation says, held to what it speaks of."""

import importlib.util
import re

import numpy as np
import pytest

import maxsup_hf
from maxsup_hf import MaxSupTrainer, cli
from maxsup_hf.losses import list_losses
from tests import tiny
from tests.documentation.commands import ROOT
from tests.documentation.test_pages import PAGES

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "model_cards" / "results"


def texts():
    return {page: (ROOT / page).read_text() for page in PAGES}


def test_the_readme_prints_the_commands_that_are_run_before_a_change_is_taken():
    script = (ROOT / ".ci" / "run").read_text()
    install, test = (re.search(rf'^{name}="(.*)"$', script, flags=re.MULTILINE)[1] for name in ("INSTALL", "TEST"))
    assert f"\n{install} && {test}\n" in README


def test_before_and_after(tmp_path):
    """The lines with a + of the README's diff."""
    (block,) = re.findall(r"^```diff\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    after = "\n".join(line[2:] for line in block.splitlines() if line.startswith("+ "))
    names = {"model": tiny.vit(), "train": tiny.rows(tiny.batch("vit", size=4))}
    exec(after.replace('"out"', repr(str(tmp_path))), names)
    assert type(names["trainer"]) is MaxSupTrainer and names["trainer"].args.loss == "maxsup"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 170


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page):
    named = re.findall(r"(?<![\w/.])(?:maxsup_hf|tests|examples|docs|model_cards)/[\w./]*\w", (ROOT / page).read_text())
    missing = [path for path in named if not (ROOT / path).exists() and not path.endswith("_")]  # as in metrics/maxsup_*
    assert not missing


def test_every_page_is_in_the_contents():
    listed = re.findall(
        r"^(?:guides|explanation|extend|reference)/\w+$|^quickstart$", texts()["docs/index.md"], flags=re.MULTILINE
    )
    pages = {page.removeprefix("docs/").removesuffix(".md") for page in PAGES if page.startswith("docs/")}
    assert set(listed) == pages - {"index"}


def test_every_command_and_task_is_in_the_reference(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = re.findall(r"^    (\w+) ", capsys.readouterr().out, flags=re.MULTILINE)
    text = texts()["docs/reference/cli.md"]
    assert len(commands) >= 7 and all(f"\n## {command}\n" in text for command in commands)
    assert all(f"\n```{{flags}} train {task}\n" in text for task in cli.tasks())


def test_every_public_name_is_in_the_reference():
    named = re.findall(r"^\.\. auto(?:class|function):: (\w+)", texts()["docs/reference/python.md"], flags=re.MULTILINE)
    assert sorted(named) == maxsup_hf.__all__


def test_every_loss_is_in_the_guide():
    table = texts()["docs/guides/losses.md"].partition("## Parameters")[0]
    named = re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `")))
    assert sorted(named) == list_losses()


# ---- the figure ----


def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figure_shows_what_the_text_says():
    module = figures()
    wrong, right = np.array([-4.0, -0.5]), np.array([0.5, 4.0])
    smoothing, maxsup = (module.curves(loss, right) for loss in ("label_smoothing", "maxsup"))
    np.testing.assert_allclose(smoothing, maxsup, rtol=1e-9)
    np.testing.assert_allclose(maxsup.push, -1)
    smoothing, maxsup = (module.curves(loss, wrong) for loss in ("label_smoothing", "maxsup"))
    np.testing.assert_allclose(maxsup.penalty - smoothing.penalty, -wrong, rtol=1e-9)  # the top is that far ahead
    np.testing.assert_allclose(smoothing.push, -1)
    np.testing.assert_allclose(maxsup.push, 1)


def test_the_figure_is_small(tmp_path):
    pytest.importorskip("matplotlib", reason="needs pip install -e '.[analysis]'")
    figures().draw(tmp_path / "penalties.png")
    assert 10_000 < (tmp_path / "penalties.png").stat().st_size < 60_000
    assert (ROOT / "docs" / "figures" / "penalties.png").stat().st_size < 60_000
