"""What a run prints, evaluates, checks and exports."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig

from maxsup_hf.scripts import image_classification, sequence_to_sequence, text_classification
from maxsup_hf.scripts.common import console, models, run
from maxsup_hf.scripts.common.evaluation import save_metrics
from maxsup_hf.scripts.common.image_processors import normalization, with_size
from maxsup_hf.scripts.common.resuming import is_recorded
from maxsup_hf.scripts.common.summary import image_size
from maxsup_hf.trainer.trainer import MaxSupTrainer
from tests.scripts.conftest import results, texts, write

CLOCKS = ("runtime", "_per_second", "_time")


def error_line(capsys, main, *argv):
    with pytest.raises(SystemExit) as end:
        main([*argv])
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


# ---- a run that was killed at its end ----


def finished(folder, files):
    """A finished run that is resumed, with these files."""
    (folder / "run.json").write_text('{"model": {}, "steps": 4}')
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    for name, content in {"README.md": b"# A card", **files}.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
    args = SimpleNamespace(output_dir=str(folder))
    return SimpleNamespace(args=args, already_finished=True, state=SimpleNamespace(global_step=4))


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"run.json": b"{"},
        {"run.json": b"[]"},
        {"model.safetensors": b""},
        {"model.safetensors": None},
        {"README.md": None},
    ],
    ids=str,
)
def test_only_what_was_saved_to_the_end_is_not_saved_again(files, tmp_path):
    assert is_recorded(finished(tmp_path, files)) == (not files)


def test_results_that_were_half_written_are_replaced(tmp_path):
    (tmp_path / "all_results.json").write_text('{"train_loss": 1.')
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir=str(tmp_path)), is_world_process_zero=lambda: True)
    save_metrics(trainer, "train", {"train_loss": 1.5}, range(3))
    save_metrics(trainer, "eval", {"eval_loss": 2.5}, range(2))
    assert json.loads((tmp_path / "eval_results.json").read_text()) == {"eval_loss": 2.5, "eval_samples": 2}
    assert results(tmp_path) == {"train_loss": 1.5, "train_samples": 3, "eval_loss": 2.5, "eval_samples": 2}


# ---- evaluation ----


@pytest.mark.parametrize(
    ("flags", "evaluations"),
    [
        ([], 2),
        (["--log_feature_geometry", "true"], 2),
        (["--eval_strategy", "no"], 1),
        (["--eval_strategy", "steps", "--eval_steps", "3"], 2),
        # each epoch is worse than the one before, and the best one is loaded
        (["--learning_rate", "0.3", "--load_best_model_at_end", "true"], 3),
        (["--do_eval", "false"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_was_just_evaluated_is_not_evaluated_again(flags, evaluations, monkeypatch, capsys):
    counted, checked, again = [], [], {}
    for name, calls in (("evaluation_loop", counted), ("check", checked)):
        stock = getattr(MaxSupTrainer, name)
        monkeypatch.setattr(
            MaxSupTrainer, name, lambda *a, stock=stock, calls=calls, **k: (calls.append(1), stock(*a, **k))[1]
        )

    def act(job):
        counted.clear()  # the check before training evaluates a few rows
        run.run(job)
        again["evaluations"] = len(counted)
        again.update(job.trainer.evaluate())

    argv = ["--train_file", texts(), "--validation_file", "train.csv", "--num_train_epochs", "2", "--output_dir", "out"]
    run.main(text_classification.prepare, [*argv, "--per_device_train_batch_size", "4", *flags], act=act)
    assert again.pop("evaluations") == evaluations and len(checked) == 1
    said = capsys.readouterr().out
    assert "{'" not in said and len(re.findall(r"eval loss [\d.]+, accuracy [\d.]+$", said, re.M)) == evaluations + 1
    if evaluations:
        saved = json.loads(Path("out/eval_results.json").read_text(encoding="utf-8"))
        assert saved.pop("eval_samples") == 8 and saved.keys() == again.keys()
        same = [name for name in again if not name.endswith(CLOCKS)]
        assert {name: saved[name] for name in same} == pytest.approx({name: again[name] for name in same}, abs=1e-6)


def test_a_line_names_the_metric_that_was_chosen():
    logs = {"eval_loss": 0.5, "eval_accuracy": 0.25, "eval_ece": 0.1, "eval_mce": 0.2, "eval_runtime": 3.0, "epoch": 1.5}
    state = SimpleNamespace(global_step=3, max_steps=8, epoch=1.5)
    assert console.describe_log(logs, state) == "step 3 of 8, epoch 1.50: eval loss 0.5, accuracy 0.25"
    assert console.describe_log(logs, state, "eval_ece").endswith("accuracy 0.25, ece 0.1")
    state.max_steps = 0
    assert console.describe_log({"test_f1": 0.5, "test_runtime": 3.0}, state, "loss") == "test f1 0.5"
    logs = {"loss": 2.5, "grad_norm": 1.0, "learning_rate": 1e-3, "train_penalty": 0.1, "epoch": 1.5}
    assert console.describe_log(logs, state) == "loss 2.5, learning_rate 0.001"


# ---- the summary ----


def test_the_summary_names_cut_texts_and_steps(capsys, caplog):
    long = [f"{text} and so on and on" for text in ("good day", "bad day")]
    write("t.csv", {"text": [*long, *["good", "bad"] * 3], "label": ["good", "bad"] * 4})
    argv = ["--train_file", "t.csv", "--validation_file", "t.csv", "--max_seq_length", "6", "--output_dir", "out"]
    with caplog.at_level("INFO"):
        text_classification.main([*argv, "--dry_run", "true", "--per_device_train_batch_size", "3"])
    assert "train data: 2 of 8 texts (25.0%) are longer than max_seq_length=6 tokens and are cut" in caplog.text
    said = capsys.readouterr().out
    assert (
        "random weights (--model_name_or_path fine-tunes)" in said
        and "on 8 rows for training, 8 for validation, loss Loss(" in said
    )
    assert "learning rate 0.001, 10 epochs (30 steps)" in said and "rarest class: bad (4)" in said
    write("p.csv", {"source": ["a", "b"] * 4, "target": ["one two three four five six", "x"] * 4})
    argv = ["--train_file", "p.csv", "--max_target_length", "4", "--output_dir", "out", "--dry_run", "true"]
    caplog.clear()
    with caplog.at_level("INFO"):
        sequence_to_sequence.main(argv)
    assert "validation data: 0 of 1 sources (0.0%)" in caplog.text
    assert re.search(r"train data: \d of 7 targets \(\d\d.\d%\) are longer than max_target_length=4", caplog.text)


def test_the_size_of_images_in_words(capsys):
    argv = ["--dry_run", "true", "--max_train_samples", "40", "--image_size", "16", "--output_dir", "out"]
    image_classification.main(argv)
    assert "; images of 16 x 16 pixels) on 40 rows for training" in capsys.readouterr().out
    cropping = SimpleNamespace(do_center_crop=True, size={"shortest_edge": 40}, crop_size={"height": 24, "width": 32})
    assert image_size(cropping) == "24 x 32 pixels"
    assert image_size(SimpleNamespace(size={"shortest_edge": 40})) == "shortest edge 40 pixels"
    assert image_size(SimpleNamespace()) is None


# ---- timm ----


class TimmProcessor:
    """Stands in for TimmWrapperImageProcessor."""

    def __init__(self, pretrained_cfg, architecture=None):
        self.data_config, self.architecture = dict(pretrained_cfg), architecture


def test_timm_models(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "resnet10t", "num_classes": 2, "pretrained_cfg": {}}')
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "timm", None)  # importing it fails
    said = error_line(capsys, image_classification.main, "--model_name_or_path", str(folder))
    assert "timm models need timm and torchvision, and timm cannot be imported (" in said
    assert "pip install timm torchvision" in said
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace())
    models._check_timm()

    processor = with_size(TimmProcessor({"input_size": (3, 8, 8), "mean": (1, 2, 3), "std": (4, 5, 6)}, "net"), 16)
    assert processor.architecture == "net" and image_size(processor) == "16 x 16 pixels"
    assert normalization(processor) == ((1, 2, 3), (4, 5, 6))
    network = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2), "fc": torch.nn.Linear(2, 2)})
    network.get_classifier = lambda: network["fc"]
    wrapper = torch.nn.Module()
    wrapper.base_model = network
    models._freeze_backbone(wrapper)
    assert [name for name, weight in network.named_parameters() if weight.requires_grad] == ["fc.weight", "fc.bias"]
    config = BertConfig(label_names=["a"])
    assert models.set_classes(config, ["x", "y"]).label_names == ["x", "y"]


# ---- export ----


@pytest.fixture
def optimum(tmp_path, monkeypatch):
    """A stand-in for optimum-onnx, which needs the given transformers."""

    def install(transformers):
        info = tmp_path / "site" / "optimum_onnx-9.1.dist-info"
        info.mkdir(parents=True)
        needs = f'Requires-Dist: {transformers}\nRequires-Dist: transformers<1; extra == "old"\n'
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: optimum-onnx\nVersion: 9.1\n{needs}")
        module = tmp_path / "site" / "optimum" / "exporters" / "onnx"
        module.mkdir(parents=True)
        for folder in (module.parents[1], module.parent):
            (folder / "__init__.py").touch()
        (module / "__init__.py").write_text(
            "import json, pathlib\n"
            "def main_export(model, output, task):\n"
            "    assert 'broken' not in model, 'no such\\nlayer'\n"
            "    pathlib.Path(output).mkdir()\n"
            "    pathlib.Path(output, 'model.onnx').write_text(json.dumps([model, task]))\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path / "site"))

    yield install
    for name in [name for name in sys.modules if name.partition(".")[0] == "optimum"]:
        del sys.modules[name]


def test_export(optimum):
    optimum("transformers>=5")
    argv = ["--train_file", texts(), "--max_steps", "1", "--save_strategy", "no", "--eval_strategy", "no"]
    text_classification.main([*argv, "--export", "onnx", "--output_dir", "out"])
    assert json.loads(Path("out/onnx/model.onnx").read_text()) == ["out", "text-classification"]
    assert "eval_accuracy" in results("out")


def test_an_export_that_fails_is_one_line_and_the_model_is_saved(optimum, capsys):
    optimum("transformers>=5")
    argv = ["--train_file", texts(), "--max_steps", "1", "--save_strategy", "no", "--do_eval", "false", "--export", "onnx"]
    with pytest.raises(SystemExit) as end:
        text_classification.main([*argv, "--output_dir", "broken"])
    assert end.value.code == 1 and {"model.safetensors", "README.md"} <= {path.name for path in Path("broken").iterdir()}
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "error: export: broken is saved, but could not be exported to onnx: no such layer"
    only = ["--do_train", "false", "--do_eval", "true"]
    assert "export: nothing is trained" in error_line(capsys, text_classification.main, *argv, *only)


def test_an_export_that_cannot_be_done_is_one_line_before_training(optimum, capsys):
    main = text_classification.main
    assert "export must be onnx, got 'tflite'" in error_line(capsys, main, "--export", "tflite")
    if find_spec("optimum") is None:
        assert "export: onnx needs optimum-onnx, which is not installed" in error_line(capsys, main, "--export", "onnx")
    optimum("transformers<4.58.0,>=4.36")
    said = error_line(capsys, main, "--export", "onnx")
    assert "error: export: optimum-onnx 9.1 needs transformers<4.58.0,>=4.36, and 5." in said


# ---- flags that contradict each other ----


def test_early_stopping_needs_evaluations(capsys):
    said = error_line(capsys, text_classification.main, "--early_stopping_patience", "2", "--eval_strategy", "no")
    assert said == (
        "error: early_stopping_patience counts evaluations, and eval_strategy is no; set --eval_strategy epoch or steps"
    )
