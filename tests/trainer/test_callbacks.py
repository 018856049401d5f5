"""Callbacks: their values, where they are logged, and that training goes on as without them."""

import json
import math

import datasets
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from maxsup_hf.metrics import feature_geometry
from maxsup_hf.scripts import image_classification, text_classification
from maxsup_hf.trainer.callbacks import FeatureGeometryCallback, WrongRowsCallback
from maxsup_hf.trainer.wrong_rows import count_wrong
from tests import tiny
from tests.launch import two_processes
from tests.trainer.fused import FUSED, build, trainer_of

KEYS = ("feature_within", "feature_r2")


def trainer(folder, name="vit", kind=MaxSupTrainer, arguments=MaxSupTrainingArguments, eval_data=None, **kwargs):
    torch.manual_seed(0)
    arguments = arguments(
        str(folder), per_device_eval_batch_size=8, num_train_epochs=2, eval_strategy="epoch", logging_steps=1,
        save_strategy="no", use_cpu=True, dataloader_pin_memory=False,
        **{"per_device_train_batch_size": 4, "learning_rate": 1e-2} | kwargs,
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
        "from maxsup_hf.trainer.callbacks import FeatureGeometryCallback, WrongRowsCallback\n"
        "from tests.launch import end_of_a_rank\n"
        "from tests.trainer.test_callbacks import trainer\n"
        "run = trainer(sys.argv[1], per_device_train_batch_size=1, gradient_accumulation_steps=2, learning_rate=0)\n"
        "run.add_callback(wrong := WrongRowsCallback(run))\n"
        "run.add_callback(geometry := FeatureGeometryCallback(run))\n"
        # 20 rows in batches of 2 x 8: the last batch is filled up with rows from the start
        "metrics = run.evaluate() | {'processes': run.args.world_size}\n"
        "run.remove_callback(geometry)\n"
        "run.train()\n"
        "metrics['counts'] = wrong.counts\n"
        "with open(f'{sys.argv[1]}/{run.args.process_index}.json', 'w') as file:\n"
        "    json.dump(metrics, file)\n"
        "end_of_a_rank()\n"
    )
    run = trainer(tmp_path, learning_rate=0)
    run.add_callback(FeatureGeometryCallback(run))
    run.add_callback(wrong := WrongRowsCallback(run))
    alone = run.evaluate()
    run.train()
    assert sum(wrong.counts["rows"]) == 24 and 0 < sum(wrong.counts["wrong"]) < 24
    two_processes(script, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["processes"] == 2
        assert [found[key] for key in KEYS] == pytest.approx([alone[key] for key in KEYS], rel=1e-5)
        assert found["counts"]["rows"] == wrong.counts["rows"]  # of each step; the ranks see them in another order
        assert sum(found["counts"]["wrong"]) == sum(wrong.counts["wrong"])


@pytest.mark.parametrize("head", ["causal lm", "masked lm"])
def test_wrong_rows_are_those_of_the_training_forwards(head, tmp_path):
    """Accumulated, with ignored labels, and with logits that are never made."""
    model, batch = build(FUSED[head])
    seen = []

    def keep(module, args, kwargs, output):
        labels = kwargs["labels"]
        logits = output["logits"]
        if head == "causal lm":
            logits, labels = logits[:, :-1], labels[:, 1:]
        counted = labels != -100
        seen.append((int(((logits.argmax(-1) != labels) & counted).sum()), int(counted.sum())))

    counts = {}
    start = {name: value.clone() for name, value in model.state_dict().items()}
    for fused in (False, True):
        model.load_state_dict(start)
        run = trainer_of(
            model, tmp_path, fused, tiny.rows(batch), max_steps=20, per_device_train_batch_size=2, learning_rate=1e-2,
            gradient_accumulation_steps=2,
        )  # fmt: skip
        run.add_callback(wrong := WrongRowsCallback(run))
        hook = None if fused else model.register_forward_hook(keep, with_kwargs=True)
        run.train()
        if hook is not None:
            hook.remove()
        counts[fused] = wrong.counts
    parts = [[sum(column) for column in zip(*seen[4 * part : 4 * part + 4], strict=True)] for part in range(10)]
    assert counts[False] == {"wrong": [w for w, _ in parts], "rows": [n for _, n in parts]} == counts[True]
    assert 0 < sum(counts[False]["wrong"]) < sum(counts[False]["rows"])


def test_which_rows_are_wrong():
    logits = torch.tensor([[2.0, 1.0], [1.0, 2.0], [0.0, 0.0], [3.0, 0.0]])
    assert count_wrong(logits, torch.tensor([0, 0, 1, -100]), -100).tolist() == [2, 3]  # of equal logits the first is top
    probabilities = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.7, 0.3], [0.0, 1.0]])
    assert count_wrong(logits, probabilities, -100).tolist() == [3, 4]


@pytest.mark.parametrize("script", [image_classification, text_classification])
def test_the_scripts_have_a_flag_for_it(script, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    for given in ([], ["--log_feature_geometry", "true"]):
        job = script.prepare(["--max_eval_samples", "60", "--output_dir", str(tmp_path / "run"), *given])
        assert (KEYS[1] in job.trainer.evaluate()) == bool(given)
