"""Dense mode of Zipf's label smoothing: the last feature map votes."""

import pytest
import torch

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments, compute_loss_func, create_loss
from tests import tiny


def trainer(model, folder):
    args = MaxSupTrainingArguments(
        str(folder), use_cpu=True, disable_tqdm=True, max_steps=1, save_strategy="no", loss="zipf_label_smoothing",
        loss_kwargs={"dense": True, "lam": 1.0}, remove_unused_columns=False,
    )  # fmt: skip
    return MaxSupTrainer(model, args, train_dataset=tiny.rows(tiny.batch("vit")))


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_equals_votes_by_hand(name, tmp_path):
    model, data = tiny.CLASSIFIERS[name](), tiny.batch(name)
    with torch.no_grad():
        features = (model.resnet if name == "resnet" else model.vit)(data["pixel_values"]).last_hidden_state
        if name == "resnet":
            linear = model.classifier[-1]
            votes = [[(linear.weight @ p + linear.bias).argmax() for p in row.flatten(1).T] for row in features]
        else:
            votes = [[(model.classifier.weight @ p + model.classifier.bias).argmax() for p in row] for row in features]
        logits = model(data["pixel_values"]).logits
    loss = create_loss("zipf_label_smoothing", dense=True, lam=1.0)
    expected = loss(logits, data["labels"], votes=torch.tensor(votes))
    ours = trainer(model, tmp_path)
    ours.args.max_steps = 1
    ours.train()
    assert ours.state.log_history[-1]["train_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_model_without_a_feature_map_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="BertForSequenceClassification does not allow: it is not an image classifier"):
        trainer(tiny.bert(), tmp_path).train()


def test_a_classifier_that_takes_no_positions(tmp_path):
    model = tiny.resnet()
    model.classifier = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 5))
    with pytest.raises(ValueError, match="does not allow: its classifier does not accept a single position"):
        trainer(model, tmp_path).train()


def test_outputs_alone_have_no_votes():
    with pytest.raises(ValueError, match="dense=True needs the model's last feature map.*use MaxSupTrainer"):
        compute_loss_func("zipf_label_smoothing", model=tiny.vit(), dense=True)
    with pytest.raises(ValueError, match="dense=True needs votes"):
        create_loss("zipf_label_smoothing", dense=True)(torch.randn(2, 5), torch.tensor([0, 1]))
