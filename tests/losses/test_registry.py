"""Registering losses, checking their parameters, schedules, and sums of losses."""

import os

import pytest
import torch

from maxsup_hf import create_loss, list_losses, register_loss
from maxsup_hf.losses import _registry, get_spec


@pytest.fixture
def registry(monkeypatch):
    """Registrations of a test are undone after it."""
    monkeypatch.setattr(_registry, "_SPECS", dict(_registry._SPECS))


def test_losses_of_the_package_are_registered():
    assert {"cross_entropy", "label_smoothing", "maxsup"} <= set(list_losses())


@pytest.mark.parametrize("name", list_losses())
def test_every_loss_is_described(name):
    assert get_spec(name).description
    assert repr(name) in repr(create_loss(name))


def test_a_users_loss_in_three_lines(registry):
    @register_loss("half_maxsup")
    def half_maxsup(cross_entropy, top, mean, *, alpha=0.1):
        return cross_entropy, alpha / 2 * (top - mean)

    logits, labels = torch.randn(4, 5), torch.randint(5, (4,))
    expected = create_loss("maxsup", alpha=0.1)(logits, labels)
    torch.testing.assert_close(create_loss("half_maxsup", alpha=0.2)(logits, labels), expected)
    assert "half_maxsup" in list_losses()


def test_files_listed_in_the_environment(registry, monkeypatch, tmp_path):
    """They make a user's loss known in every process of a comparison or a launcher."""
    formula = "@register_loss('half_{0}')\ndef half_{0}(top, cross_entropy):\n    return cross_entropy, top / 2\n"
    for name in ("first", "second"):
        text = "from maxsup_hf import list_losses, register_loss\nassert list_losses()\n" + formula.format(name)
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("MAXSUP_HF_LOSSES", os.pathsep.join(str(tmp_path / f"{name}.py") for name in ("first", "second")))
    assert get_spec("half_first+z_loss").arguments == ("cross_entropy", "top", "lse")
    assert {"half_first", "half_second"} <= set(list_losses())
    monkeypatch.setenv("MAXSUP_HF_LOSSES", str(tmp_path / "third.py"))
    with pytest.raises(ValueError, match=r"MAXSUP_HF_LOSSES must name Python files with losses, got '.*third.py'"):
        create_loss("maxsup")
    (tmp_path / "third.py").write_text("@@")
    with pytest.raises(ValueError, match="third.py' cannot be run: SyntaxError: .*line 1"):
        create_loss("maxsup")


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        (
            lambda top, mean, *, alpha=0.1: (top, alpha * (top - mean).mean()),
            r"not averaged; for 3 rows it returned \(3,\), \(\)",
        ),
        (lambda cross_entropy: cross_entropy, r"two tensors of shape \(N,\).* returned \(3,\)$"),
        (lambda cross_entropy: cross_entropy.mean(), r"returned \(\)$"),
        (lambda cross_entropy: (cross_entropy, None), r"returned \(3,\), None$"),
        (
            lambda cross_entropy, logits, *, k=3: (cross_entropy, logits.topk(k).values[:, 0]),
            r"failed on a batch of 3 rows.*write int\(k\)",
        ),
        (
            lambda top, *, alpha=0.1, alpha_end=0.2: (top, top),
            r"'alpha_end' of loss 'a' exists for every parameter 'alpha' and must not.*alpha_end=0.2\)",
        ),
    ],
)
def test_a_formula_is_tried_when_it_is_registered(formula, message, registry):
    with pytest.raises(TypeError, match=message):
        register_loss("a")(formula)
    assert "a" not in list_losses()


def test_registration_is_checked(registry):
    with pytest.raises(TypeError, match="'tip' of loss 'a' must be a row statistic"):
        register_loss("a")(lambda tip: (tip, tip))
    with pytest.raises(TypeError, match="'alpha' of loss 'b' must have a numeric default, got none"):
        register_loss("b")(lambda top, *, alpha: (top, top))
    with pytest.raises(TypeError, match=r"unexpected argument 'beta_end'.*of loss 'c' \(alpha_end\)"):
        register_loss("c", beta_end=1.0)(lambda top, *, alpha=0.1: (top, top))
    with pytest.raises(ValueError, match=r"'maxsup' is already registered \(by maxsup_hf.losses.maxsup\)"):
        register_loss("maxsup")(lambda top: (top, top))


@pytest.mark.parametrize(
    "name, nearest", [("maxsupp", "maxsup"), ("Label-Smoothing", "label_smoothing"), ("cross", "cross_entropy")]
)
def test_an_unknown_name_gets_a_suggestion(name, nearest):
    with pytest.raises(ValueError, match=f"unknown loss '{name}', did you mean '{nearest}'"):
        create_loss(name)


def test_a_name_must_be_a_string():
    with pytest.raises(TypeError, match="loss must be a name.*NoneType"):
        create_loss(None)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"alhpa": 0.1}, TypeError, "no parameter 'alhpa', did you mean 'alpha'"),
        ({"alpha": -0.1}, ValueError, "alpha of loss 'maxsup' must be finite and at least 0, got -0.1"),
        ({"alpha_end": float("nan")}, ValueError, "alpha_end.*finite.*nan"),
        ({"alpha": float("inf")}, ValueError, "alpha.*finite.*inf"),
        ({"alpha": "0.1"}, TypeError, "alpha.*must be a number, got str"),
        ({"alpha": True}, TypeError, "alpha.*must be a number, got bool"),
        ({"alpha": None}, TypeError, "alpha.*must be a number, got NoneType"),
        ({"schedule": "cubic"}, ValueError, "schedule of loss 'maxsup' must be one of 'constant', 'linear'.*'cubic'"),
        ({"schedule": "epoch"}, ValueError, "epochs must be a whole number"),
        ({"schedule": "epoch", "epochs": 0}, ValueError, "epochs.*at least 1, got 0"),
        ({"schedule": "epoch", "epochs": 2.5}, ValueError, "epochs.*whole number.*2.5"),
    ],
)
def test_parameters_are_checked(kwargs, error, message):
    with pytest.raises(error, match=message):
        create_loss("maxsup", **kwargs)


def test_bounds():
    with pytest.raises(ValueError, match=r"alpha of loss 'label_smoothing' must be finite and in \[0, 1\], got 1.5"):
        create_loss("label_smoothing", alpha=1.5)


def test_schedules():
    loss = create_loss("maxsup")
    assert loss.values(0)["alpha"] == 0.1 and loss.values(1)["alpha"] == pytest.approx(0.2)
    assert loss.values(0.25)["alpha"] == pytest.approx(0.125) and loss.is_scheduled
    constant = create_loss("maxsup", alpha=0.3, alpha_end=None)
    assert constant.values(0.7) == {"alpha": 0.3} and not constant.is_scheduled
    assert not create_loss("cross_entropy").is_scheduled and not create_loss("label_smoothing").is_scheduled
    logits, labels = torch.randn(4, 5), torch.randint(5, (4,))
    torch.testing.assert_close(loss(logits, labels, 0.5), create_loss("maxsup", alpha=0.15)(logits, labels))
    for progress in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="progress must be in"):
            loss(logits, labels, progress)


@pytest.mark.parametrize("name", list_losses())
@pytest.mark.parametrize(
    ("schedule", "extra", "fractions"),
    [
        ("constant", {}, [0, 0, 0, 0, 0]),
        ("linear", {}, [0, 0.25, 0.5, 0.75, 1]),
        ("cosine", {}, [0, 0.1464466094067262, 0.5, 0.8535533905932737, 1]),
        ("warmup", {"warmup_ratio": 0.5}, [0, 0.5, 1, 1, 1]),
        ("epoch/T", {"epochs": 4}, [0, 0.25, 0.5, 0.75, 1]),
        ("epoch/(T-1)", {"epochs": 4}, [0, 1 / 3, 2 / 3, 1, 1]),
    ],
)
def test_every_parameter_of_every_loss_can_be_scheduled(name, schedule, extra, fractions):
    for parameter in get_spec(name).parameters:
        loss = create_loss(name, **{parameter: 0.25, f"{parameter}_end": 0.75}, schedule=schedule, **extra)
        values = [loss.values(progress)[parameter] for progress in (0, 0.25, 0.5, 0.75, 1)]
        assert values == pytest.approx([0.25 + 0.5 * fraction for fraction in fractions])


def test_a_schedule_without_an_end_value_is_rejected():
    with pytest.raises(ValueError, match="schedule='cosine' of loss 'focal' has no effect .*: set gamma_end"):
        create_loss("focal", schedule="cosine")
    with pytest.raises(TypeError, match="warmup_ratio of loss 'maxsup' must be a number, got NoneType"):
        create_loss("maxsup", schedule="warmup")
    with pytest.raises(ValueError, match="warmup_ratio of loss 'maxsup' must be finite and in"):
        create_loss("maxsup", schedule="warmup", warmup_ratio=0)


def test_options_are_checked():
    assert create_loss("label_smoothing", over="K-1").kwargs["over"] == "K-1"
    with pytest.raises(ValueError, match="over of loss 'label_smoothing' must be 'K' or 'K-1', got 'k'"):
        create_loss("label_smoothing", over="k")
    for value in (1, "true", None):
        with pytest.raises(ValueError, match="detach of loss 'focal' must be True or False"):
            create_loss("focal", detach=value)


def test_penalties_add():
    logits, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, -100, 4, 3])
    ce = create_loss("cross_entropy")(logits, labels)
    kwargs = {"maxsup": {"alpha": 0.3, "alpha_end": None}, "z_loss": {"lam": 0.01}}
    parts = [create_loss(name, **given)(logits, labels) - ce for name, given in kwargs.items()]
    both = create_loss("maxsup+z_loss", **kwargs)
    torch.testing.assert_close(both(logits, labels), ce + sum(parts))
    assert both.values(1.0) == {"maxsup.alpha": 0.3, "z_loss.lam": 0.01}
    dotted = create_loss("maxsup+z_loss", **{"maxsup.alpha": 0.3, "maxsup.alpha_end": None, "z_loss.lam": 0.01})
    assert dotted.kwargs == both.kwargs
    assert "zhou2025maxsup" in both.spec.citation and "chowdhery2022palm" in both.spec.citation


@pytest.mark.parametrize("replacing", [name for name in list_losses() if get_spec(name).replaces_target])
def test_a_penalty_adds_to_any_target_term_and_two_target_terms_are_rejected(replacing):
    logits, labels = torch.randn(6, 5, dtype=torch.float64), torch.randint(5, (6,))
    added = create_loss("maxsup")(logits, labels) - create_loss("cross_entropy")(logits, labels)
    for name in (f"{replacing}+maxsup", f"maxsup + {replacing}"):
        torch.testing.assert_close(create_loss(name)(logits, labels), create_loss(replacing)(logits, labels) + added)
    for other in list_losses():
        if get_spec(other).replaces_target and other != replacing:
            with pytest.raises(ValueError, match=f"cannot be combined, and '{replacing}' and '{other}' do"):
                create_loss(f"{replacing}+{other}")


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "message"),
    [
        ("maxsup+maxsup", {}, ValueError, "names the same loss twice"),
        ("maxsup+zloss", {}, ValueError, "unknown loss 'zloss', did you mean 'z_loss'"),
        ("maxsup+", {}, ValueError, "unknown loss ''"),
        ("maxsup+z_loss", {"alpha": 0.1}, TypeError, "no parameter 'alpha', did you mean 'maxsup.alpha'"),
        ("maxsup+z_loss", {"maxsup": {"alhpa": 0.1}}, TypeError, "no parameter 'maxsup.alhpa', did you mean 'maxsup.alpha'"),
        ("maxsup+z_loss", {"z_loss": {"lam": -1}}, ValueError, "z_loss.lam of loss 'maxsup.z_loss' must be finite and at"),
        (
            "maxsup+z_loss",
            {"z_loss": {"schedule": "linear"}},
            ValueError,
            "has no effect without an end value: set z_loss.lam_end",
        ),
    ],
)
def test_sums_are_checked(name, kwargs, error, message):
    with pytest.raises(error, match=message):
        create_loss(name, **kwargs)


@pytest.mark.parametrize("epochs", [1, 3, 7, 90, 300])
def test_epoch_wise_schedules_change_only_between_epochs(epochs):
    loss = create_loss("maxsup", schedule="epoch/T", epochs=epochs)
    steps = 37  # per epoch; the progress e·37/(37·epochs) must count as epoch e, whatever the rounding error
    for step in range(epochs * steps):
        expected = 0.1 + 0.1 * (step // steps) / epochs
        assert loss.values(step / (epochs * steps))["alpha"] == pytest.approx(expected, abs=1e-12)


def test_num_items_in_batch_needs_a_mean():
    with pytest.raises(ValueError, match="num_items_in_batch.*reduction='mean', got 'sum'"):
        create_loss("maxsup")(torch.randn(2, 3), torch.tensor([0, 1]), num_items_in_batch=2, reduction="sum")


def test_a_loss_adds_nothing_to_a_state_dict():
    assert not create_loss("maxsup").state_dict() and not list(create_loss("maxsup").parameters())
