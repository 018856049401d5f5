import pytest
import torch

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from maxsup_hf.trainer.learning_rate import parse_milestones, step_schedule
from tests.tiny import batch, rows, vit

STEPS, WARMUP = 20, 4


def test_it_is_torchs_schedule_after_the_warm_up():
    ours, theirs = (torch.optim.SGD([torch.zeros(1)], lr=0.2) for _ in range(2))
    schedule = step_schedule(ours, [0.6, 0.8], 0.01, WARMUP, STEPS)
    reference = torch.optim.lr_scheduler.MultiStepLR(theirs, [12, 16], 0.01)
    for step in range(STEPS):
        expected = theirs.param_groups[0]["lr"] * min(1, step / WARMUP)
        assert ours.param_groups[0]["lr"] == pytest.approx(expected), step
        for of in (ours, theirs, schedule, reference):
            of.step()


def test_a_trainer_uses_it(tmp_path):
    args = MaxSupTrainingArguments(
        tmp_path, max_steps=4, lr_milestones="0.5", lr_gamma=0.1, learning_rate=0.1, per_device_train_batch_size=2,
        logging_steps=1, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, lr_scheduler_type="cosine",
    )  # fmt: skip
    trainer = MaxSupTrainer(vit(), args, train_dataset=rows(batch("vit")))
    trainer.train()
    rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("given", [[0.6, 0.8], "0.6,0.8", "[0.6, 0.8]"])
def test_milestones(given):
    assert parse_milestones(given) == [0.6, 0.8] and parse_milestones(None) == []


@pytest.mark.parametrize("wrong", ["0.8,0.6", "60,80", "0.5,0.5", "half", [0, 0.5], "0.5;0.6"])
def test_wrong_milestones(wrong):
    with pytest.raises(ValueError, match="lr_milestones must be rising shares of the training between 0 and 1"):
        parse_milestones(wrong)


@pytest.mark.parametrize("gamma", [0, 1.5, -1])
def test_wrong_gamma(gamma, tmp_path):
    with pytest.raises(ValueError, match=r"lr_gamma must be in \(0, 1\], got"):
        MaxSupTrainingArguments(tmp_path, lr_milestones="0.5", lr_gamma=gamma)
