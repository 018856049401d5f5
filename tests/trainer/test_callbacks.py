"""Geometry during training: the values, where they are logged, and that training goes on as without them."""

import json
import math

import datasets
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from maxsup_hf.metrics import feature_geometry
from maxsup_hf.scripts import image_classification, text_classification
from maxsup_hf.trainer.callbacks import FeatureGeometryCallback
from tests import tiny
from tests.launch import two_processes

KEYS = ("feature_within", "feature_r2")


def trainer(folder, name="vit", kind=MaxSupTrainer, arguments=MaxSupTrainingArguments, eval_data=None, **kwargs):
    torch.manual_seed(0)
    arguments = arguments(
        str(folder), per_device_train_batch_size=4, per_device_eval_batch_size=8, num_train_epochs=2, eval_strategy="epoch",
        logging_steps=1, save_strategy="no", learning_rate=1e-2, use_cpu=True, dataloader_pin_memory=False, **kwargs,
    )  # fmt: skip
    eval_data = tiny.rows(tiny.batch(name, 20, seed=1)) if eval_data is None else eval_data
    train = tiny.rows(tiny.batch(name, 12))
    return kind(tiny.CLASSIFIERS[name](), arguments, train_dataset=train, eval_dataset=eval_data)


def by_hand(model, data):
    """The features by hand: what the layer named `classifier` of ViT gets."""
    with torch.no_grad():
        features = model.eval().vit(data["pixel_values"]).last_hidden_state[:, 0]
    return feature_geometry(features, data["labels"], num_classes=tiny.CLASSES)


@pytest.mark.parametrize(
    ("kind", "arguments", "loss"),
    [
        (MaxSupTrainer, MaxSupTrainingArguments, {"loss": "label_smoothing"}),
        (Trainer, TrainingArguments, {"label_smoothing_factor": 0.1}),  # takes the labels out of the model's inputs
    ],
)
def test_values_at_each_evaluation(tmp_path, kind, arguments, loss):
    data = tiny.batch("vit", 20, seed=1)
    run = trainer(tmp_path, kind=kind, arguments=arguments, **loss)
    run.add_callback(FeatureGeometryCallback(run))
    before, expected = run.evaluate(), by_hand(run.model, data)
    assert [before[key] for key in KEYS] == pytest.approx([expected["d_within"], expected["r2"]], rel=1e-5)
    run.train()
    logged = [entry for entry in run.state.log_history if KEYS[0] in entry]
    assert [entry["step"] for entry in logged] == [3, 6]
    expected = by_hand(run.model, data)
    assert [logged[-1][key] for key in KEYS] == pytest.approx([expected["d_within"], expected["r2"]], rel=1e-5)
    assert logged[0][KEYS[0]] != logged[1][KEYS[0]]


class Seen(TrainerCallback):
    """As a reporter: what it is handed to log."""

    def __init__(self):
        self.keys = set()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.keys |= set(logs)


def test_reporters_get_the_values_and_other_sets_have_names_of_their_own(tmp_path):
    run = trainer(tmp_path)
    seen = Seen()
    run.add_callback(seen)
    run.add_callback(FeatureGeometryCallback(run))
    run.evaluate(metric_key_prefix="test")
    assert {f"test_{key}" for key in KEYS} < seen.keys and not set(KEYS) & seen.keys
    sets = {"one": run.eval_dataset, "two": run.eval_dataset[:10]}
    metrics = run.evaluate(sets)
    assert metrics["one_feature_within"] != metrics["two_feature_within"]
    run.train()
    assert set(KEYS) < seen.keys


def test_training_goes_on_as_without_it(tmp_path):
    runs = [trainer(tmp_path, "bert") for _ in range(2)]
    runs[1].add_callback(FeatureGeometryCallback(runs[1]))
    for run in runs:
        torch.manual_seed(0)
        run.model.bert.embeddings.dropout.p = 0.5  # draws from the generator at every step
        run.train()
    for one, other in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.equal(one, other)


def test_classes_without_a_row_are_left_out_and_a_single_class_is_refused(tmp_path):
    data = tiny.batch("vit", 20, seed=1)
    few = {key: value[data["labels"] < 2] for key, value in data.items()}
    run = trainer(tmp_path, eval_data=tiny.rows(few))
    run.add_callback(FeatureGeometryCallback(run))
    assert math.isfinite(run.evaluate()["feature_r2"])
    run = trainer(tmp_path, eval_data=[row for row in tiny.rows(data) if row["labels"] == 1])
    run.add_callback(FeatureGeometryCallback(run))
    with pytest.raises(ValueError, match="all rows are of class 1; geometry compares classes"):
        run.evaluate()


def test_two_ranks_know_what_one_does(tmp_path):
    script = tmp_path / "evaluate.py"
    script.write_text(
        "import json, sys\n"
        "from maxsup_hf.trainer.callbacks import FeatureGeometryCallback\n"
        "from tests.launch import end_of_a_rank\n"
        "from tests.trainer.test_callbacks import trainer\n"
        "run = trainer(sys.argv[1])\n"  # 20 rows in batches of 2 x 8: the last batch is filled up with rows from the start
        "run.add_callback(FeatureGeometryCallback(run))\n"
        "metrics = run.evaluate() | {'processes': run.args.world_size}\n"
        "with open(f'{sys.argv[1]}/{run.args.process_index}.json', 'w') as file:\n"
        "    json.dump(metrics, file)\n"
        "end_of_a_rank()\n"
    )
    run = trainer(tmp_path)
    run.add_callback(FeatureGeometryCallback(run))
    alone = run.evaluate()
    two_processes(script, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["processes"] == 2
        assert [found[key] for key in KEYS] == pytest.approx([alone[key] for key in KEYS], rel=1e-5)


@pytest.mark.parametrize("script", [image_classification, text_classification])
def test_the_scripts_have_a_flag_for_it(script, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    for given in ([], ["--log_feature_geometry", "true"]):
        job = script.prepare(["--max_eval_samples", "60", "--output_dir", str(tmp_path / "run"), *given])
        assert (KEYS[1] in job.trainer.evaluate()) == bool(given)
