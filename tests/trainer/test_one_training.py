"""Several trainings by one Trainer: nothing carries over from one to the next."""

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerCallback

from maxsup_hf import MaxSupTrainer, register_loss
from maxsup_hf.losses import _registry
from tests import tiny
from tests.trainer.trainings import arguments, logs


def search(tmp_path, space, trials, **kwargs):
    ended = []

    class Ends(TrainerCallback):
        def on_train_end(self, args, state, control, **kw):
            last = [entry for entry in state.log_history if "loss" in entry][-1]
            ended.append((args.loss, last["train_penalty"], last.get("loss_alpha")))

    data = tiny.rows(tiny.batch("bert"))
    trainer = MaxSupTrainer(
        model_init=lambda trial=None: tiny.bert(), args=arguments(tmp_path, **kwargs), train_dataset=data, eval_dataset=data,
        callbacks=[Ends()],
    )  # fmt: skip
    trainer.hyperparameter_search(
        hp_space=space, n_trials=trials, direction="minimize", backend="optuna", compute_objective=lambda m: m["eval_loss"]
    )
    return ended


def test_a_hyperparameter_search_over_the_loss(tmp_path):
    pytest.importorskip("optuna", reason="hyperparameter_search needs optuna")
    losses = ["cross_entropy", "maxsup"]
    plain, ours = search(tmp_path, lambda trial: {"loss": losses[trial.number]}, 2)
    assert plain == ("cross_entropy", 0.0, None) and ours[0] == "maxsup" and ours[1] > 0


def test_a_hyperparameter_search_over_the_parameters_of_a_loss(tmp_path):
    pytest.importorskip("optuna", reason="hyperparameter_search needs optuna")
    alphas = [0.0, 0.5]
    ended = search(tmp_path, lambda trial: {"loss_kwargs": {"alpha": alphas[trial.number], "alpha_end": None}}, 2)
    assert [alpha for *_, alpha in ended] == alphas


def test_a_hyperparameter_search_with_an_unknown_loss(tmp_path):
    pytest.importorskip("optuna", reason="hyperparameter_search needs optuna")
    with pytest.raises(ValueError, match="unknown loss 'nonsense'"):
        search(tmp_path, lambda trial: {"loss": "nonsense"}, 1)


@pytest.mark.parametrize("loss", ["maxsup", "online_label_smoothing"])
def test_each_training_starts_over(loss, tmp_path):
    def trainer():
        args = arguments(tmp_path, loss=loss, max_steps=-1, num_train_epochs=3, learning_rate=1e-2)

        def model(trial=None):
            torch.manual_seed(0)
            return tiny.bert()

        return MaxSupTrainer(model_init=model, args=args, train_dataset=tiny.rows(tiny.batch("bert")))

    once, twice = trainer(), trainer()
    once.train()
    twice.train()
    twice.train()
    assert [entry["loss"] for entry in logs(once)] == [entry["loss"] for entry in logs(twice)]


def test_the_votes_of_each_training_come_from_its_model(tmp_path):
    made = []

    def model(trial=None):
        torch.manual_seed(0)
        made.append(tiny.resnet())
        return made[-1]

    data = tiny.rows(tiny.batch("resnet"))
    kwargs = {"loss": "zipf_label_smoothing", "loss_kwargs": {"dense": True}}
    losses = []
    for given in ({"model_init": model}, {"model": model()}):
        trainer = MaxSupTrainer(args=arguments(tmp_path, **kwargs), train_dataset=data, **given)
        trainer.train()
        losses.append([entry["loss"] for entry in logs(trainer)])
    assert losses[0] == losses[1]
    assert not any(module._forward_hooks for each in made for module in each.modules())


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is gone with it."""
    monkeypatch.setattr(_registry, "_SPECS", dict(_registry._SPECS))


def test_a_loss_of_the_users_own_gets_its_votes(own_registry, tmp_path):
    seen = []

    @register_loss("counts_votes")
    def counts_votes(cross_entropy, logits, votes, *, lam=0.1):
        seen.append(votes)
        return cross_entropy, lam * logits.mean(-1)

    trainer = MaxSupTrainer(
        tiny.resnet(), arguments(tmp_path, loss="counts_votes"), train_dataset=tiny.rows(tiny.batch("resnet"))
    )
    trainer.train()
    assert seen[-1] is not None and seen[-1].shape[0] == 4


def test_a_formula_that_reads_a_variable_is_computed_with_its_value(own_registry):
    from maxsup_hf import create_loss

    strength = {"now": 1.0}

    @register_loss("reads_a_variable")
    def reads_a_variable(cross_entropy, top, mean, *, alpha=0.1):
        return cross_entropy, strength["now"] * alpha * (top - mean)

    z, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    loss, plain = create_loss("reads_a_variable"), F.cross_entropy(z, labels)
    first = loss(z, labels) - plain
    strength["now"] = 3.0
    torch.testing.assert_close(loss(z, labels) - plain, 3 * first)


def test_the_parts_add_up_after_a_smaller_batch_was_found(tmp_path):
    class OutOfMemory(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.train_batch_size >= 8 and state.global_step == 2:
                raise RuntimeError("CUDA out of memory.")

    args = arguments(
        tmp_path, max_steps=4, logging_steps=4, auto_find_batch_size=True, per_device_train_batch_size=8, learning_rate=0.1
    )
    data = tiny.rows(tiny.batch("bert", size=32))
    trainer = MaxSupTrainer(tiny.bert(), args, train_dataset=data, callbacks=[OutOfMemory()])
    trainer.train()
    entry = logs(trainer)[0]
    assert entry["train_cross_entropy"] + entry["train_penalty"] == pytest.approx(entry["loss"], abs=1e-4)


def test_epochs_of_a_schedule_that_are_not_those_of_the_training(tmp_path):
    kwargs = {"schedule": "epoch/T", "epochs": 5}
    args = arguments(tmp_path, max_steps=4, loss_kwargs=kwargs)  # 8 rows, 4 a step: two epochs
    with pytest.raises(ValueError, match="must be the epochs of this training, 2, .* got 5"):
        MaxSupTrainer(tiny.bert(), args, train_dataset=tiny.rows(tiny.batch("bert"))).train()


def test_a_finished_training_that_is_resumed_still_says_what_trained(tmp_path):
    args = arguments(tmp_path, save_strategy="steps", save_steps=2)
    MaxSupTrainer(tiny.bert(), args, train_dataset=tiny.rows(tiny.batch("bert"))).train()
    resumed = MaxSupTrainer(tiny.bert(), args, train_dataset=tiny.rows(tiny.batch("bert")))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step >= 2 and resumed.trained_loss.spec.name == "maxsup"
