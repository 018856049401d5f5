"""Which runs there are, with which strength; and when a folder may be gone on with."""

import json

import pytest

from maxsup_hf.comparison.plan import Plan, at_point, check_grid, keep_plan, load_plan, share_strength
from maxsup_hf.losses import create_loss, get_spec
from tests.comparison.folders import leave

FOUR = ["cross_entropy", "label_smoothing", "online_label_smoothing", "maxsup"]
SCHEDULED = {"alpha": 0.1, "alpha_end": 0.2}


def plan(**changes):
    losses = share_strength(["cross_entropy", "maxsup"], 0.1, 0.2, None, {})
    return Plan(**{"task": "text-classification", "losses": losses, "seeds": (0, 1)} | changes)


def test_the_same_alpha_and_schedule_for_all_that_have_one():
    found = share_strength(FOUR, 0.1, 0.2, "cosine", {})
    assert found.pop("cross_entropy") == {}
    assert all(kwargs == SCHEDULED | {"schedule": "cosine"} for kwargs in found.values())
    for progress in (0.0, 0.3, 1.0):
        values = {create_loss(loss, **kwargs).values(progress)["alpha"] for loss, kwargs in found.items()}
        assert len({float(value) for value in values}) == 1


def test_a_constant_alpha_is_constant_for_maxsup_too():
    found = share_strength(["maxsup", "label_smoothing"], 0.3, None, "cosine", {})
    assert found["maxsup"] == found["label_smoothing"] == {"alpha": 0.3, "alpha_end": None}
    assert create_loss("maxsup", **found["maxsup"]).values(1.0)["alpha"] == pytest.approx(0.3)


def test_told_otherwise():
    found = share_strength(FOUR, 0.1, 0.2, None, {"online_label_smoothing": {"alpha": 0.5}, "maxsup": {"alpha_end": 0.4}})
    assert found["online_label_smoothing"] == {"alpha": 0.5, "alpha_end": None}
    assert found["maxsup"] == {"alpha": 0.1, "alpha_end": 0.4} and found["label_smoothing"] == SCHEDULED


def test_sums_share_it_too():
    found = share_strength(["maxsup+z_loss"], 0.1, 0.2, None, {"maxsup+z_loss": {"z_loss.lam": 1e-3}})
    assert found == {"maxsup+z_loss": {"maxsup.alpha": 0.1, "maxsup.alpha_end": 0.2, "z_loss.lam": 1e-3}}


@pytest.mark.parametrize(
    ("losses", "alpha", "own", "message"),
    [
        (["maxsupp"], 0.1, {}, "did you mean 'maxsup'"),
        (["maxsup", "maxsup"], 0.1, {}, "distinct names"),
        ([], 0.1, {}, "one or more"),
        (["maxsup"], 0.1, {"focal": {}}, "'focal' is not one of the compared losses"),
        (["maxsup"], 0.1, {"maxsup": {"alfa": 1}}, "did you mean 'alpha'"),
        (["label_smoothing"], 1.5, {}, "in \\[0, 1\\]"),
    ],
)
def test_wrong_losses(losses, alpha, own, message):
    with pytest.raises((ValueError, TypeError), match=message):
        share_strength(losses, alpha, None, None, own)


def test_a_run_for_each_loss_and_seed():
    runs = plan().runs()
    assert [(run.loss, run.seed) for run in runs] == [
        ("cross_entropy", 0), ("maxsup", 0), ("cross_entropy", 1), ("maxsup", 1),
    ]  # fmt: skip
    assert [run.name for run in runs] == ["cross_entropy-seed0", "maxsup-seed0", "cross_entropy-seed1", "maxsup-seed1"]


def test_grid_runs_once_what_it_shares_with_the_rest():
    runs = plan(grid={"alpha": (0.05, 0.1)}).runs()
    assert len({run.name for run in runs}) == len(runs) == 6  # maxsup at 0.1 is the run that is there anyway
    assert [run.name for run in runs[4:]] == ["maxsup-alpha=0.05-seed0", "maxsup-alpha=0.05-seed1"]
    assert runs[4].kwargs == {"alpha": 0.05, "alpha_end": 0.1}  # the schedule keeps its shape


def test_points_of_a_grid():
    assert at_point("maxsup", {"alpha": 0.1, "alpha_end": None}, {"alpha": 0.3}) == {"alpha": 0.3, "alpha_end": None}
    assert at_point("z_loss", {}, {"lam": 0.5}) == {"lam": 0.5}
    assert at_point("maxsup+z_loss", {"maxsup.alpha": 0.1, "maxsup.alpha_end": 0.2}, {"alpha": 0.2, "lam": 0.1}) == {
        "maxsup.alpha": 0.2, "maxsup.alpha_end": 0.4, "z_loss.lam": 0.1,
    }  # fmt: skip
    two = plan(losses={"focal": {}, "maxsup": SCHEDULED}, grid={"alpha": (0.1, 0.4), "gamma": (1.0, 3.0)}, seeds=(0,)).runs()
    assert [run.setting for run in two] == [
        "focal", "maxsup", "focal-gamma=1", "focal-gamma=3", "maxsup-alpha=0.4",
    ]  # fmt: skip
    for run in two:
        get_spec(run.loss).resolve(run.kwargs)


def test_wrong_grids():
    with pytest.raises(ValueError, match="has a parameter 'beta'"):
        check_grid({"maxsup": {}}, {"beta": (1.0,)})
    with pytest.raises(ValueError, match="alpha of loss 'label_smoothing' must be finite and in"):
        check_grid({"label_smoothing": {}}, {"alpha": (2.0,)})


def test_kept_and_read_again(tmp_path):
    kept = plan(grid={"alpha": (0.05, 0.1)}, flags=("--max_steps", "3"))
    keep_plan(tmp_path, kept)
    keep_plan(tmp_path, kept)
    assert load_plan(tmp_path) == kept


def test_may_grow(tmp_path):
    keep_plan(tmp_path, plan())
    losses = share_strength(["cross_entropy", "maxsup", "focal"], 0.1, 0.2, None, {})
    more = plan(losses=losses, seeds=(0, 1, 2), grid={"alpha": (0.3,)})
    keep_plan(tmp_path, more)
    assert load_plan(tmp_path) == more


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "image-classification"}, "task was 'text-classification', now 'image-classification'"),
        ({"flags": ("--max_steps", "9")}, "flags was none, now --max_steps 9"),
        ({"hold_out_test": 0.5}, "hold_out_test was 0.0"),
        ({"seeds": (1, 2)}, "seeds had 0"),
        ({"losses": {"cross_entropy": {}}}, "losses had maxsup"),
        ({"losses": {"cross_entropy": {}, "maxsup": {"alpha": 0.5}}}, 'maxsup had {"alpha": 0.1, "alpha_end": 0.2}'),
    ],
)
def test_other_settings_are_refused(changes, message, tmp_path):
    keep_plan(tmp_path, plan())
    leave(tmp_path, plan().runs()[0], {"eval": {}, "test": {}})
    before = (tmp_path / "plan.json").read_text()
    with pytest.raises(FileExistsError, match="other settings") as error:
        keep_plan(tmp_path, plan(**changes))
    assert message in str(error.value)
    assert (tmp_path / "plan.json").read_text() == before


def test_where_nothing_is_finished_a_plan_may_change(tmp_path):
    """A flag that was mistyped is put right by typing the command again."""
    keep_plan(tmp_path, plan(flags=("--label_column_name", "topci")))
    keep_plan(tmp_path, plan(flags=("--label_column_name", "topic")))
    assert load_plan(tmp_path).flags == ("--label_column_name", "topic")


def test_folders_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(FileExistsError, match="does not contain a comparison"):
        keep_plan(tmp_path, plan())
    with pytest.raises(FileNotFoundError, match="does not contain a comparison"):
        load_plan(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps({"plan": 9}))
    with pytest.raises(ValueError, match="cannot be read as the plan of a comparison"):
        load_plan(tmp_path)
