"""The scripts beside the cards: each name of an experiment is a plan, and a model is published by one command."""

import subprocess
import sys
from pathlib import Path

import pytest

from maxsup_hf import cli
from maxsup_hf.comparison import command
from maxsup_hf.scripts.body.arguments import in_use
from tests.hub.conftest import hub, hub_environment  # noqa: F401

FOLDER = Path(__file__).parents[1] / "model_cards"
sys.path.insert(0, str(FOLDER))
import experiments  # noqa: E402
import publish  # noqa: E402

NAMES = list(experiments.experiments(Path("data")))


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_a_plan(name, tmp_path):
    words = [*experiments.experiments(Path("data"))[name], "--seeds", "0,1,2", "--output_dir", str(tmp_path / "out")]
    args, flags = command.parser(cli.tasks()).parse_known_args(words)
    plan, folder, _ = command.prepare(args, cli.find_task(args.task), flags)
    assert len(plan.runs()) == 3 * len(plan.losses) >= 9 and not in_use(str(folder))
    alphas = {(kwargs["alpha"], kwargs["alpha_end"]) for kwargs in plan.losses.values() if "alpha" in kwargs}
    assert alphas == {(0.1, 0.2)}, "losses with an alpha share its schedule"


def test_results_are_of_known_experiments():
    assert {path.stem for path in (FOLDER / "results").glob("*.md")} <= set(NAMES)


def test_a_model_is_published_by_one_command(hub, hub_environment, tmp_path):  # noqa: F811
    flags = ["--max_steps", "2", "--max_train_samples", "60", "--max_eval_samples", "30", "--push", "me/digits"]
    words = [FOLDER / "publish.py", "digits-maxsup", "--runs", tmp_path / "runs", "--cards", tmp_path / "cards", *flags]
    run = subprocess.run(
        [sys.executable, *map(str, words)], env=hub_environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    card = tmp_path / "cards" / "digits-maxsup"
    figures = {path.name for path in (card / "figures").glob("*.png")}
    assert {"reliability.png", "within_class.png", "confidence.png"} <= figures
    text = (card / "README.md").read_text()
    assert all(f"(figures/{name})" in text for name in figures) and "| feature_r2 |" in text
    assert {"README.md", "model.safetensors", "figures/reliability.png"} <= set(hub.repos["me/digits"].files("main"))
    assert set(publish.models(Path())) >= {"digits-maxsup"}
