"""Models whose class is not one of transformers: their cards have code that loads them, or say that none does."""

import importlib
import re
import shutil
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments, cli
from maxsup_hf.analysis.cli import parser as analyze_parser
from maxsup_hf.analysis.models import load_model as load_to_analyze
from maxsup_hf.hub.own_code import base_model, how_to_load, names_of_its_class
from maxsup_hf.prediction.cli import parser as predict_parser
from maxsup_hf.prediction.loading import load_model as load_to_predict
from tests import tiny

NETS = """
from transformers import BertConfig, BertForSequenceClassification

class NetConfig(BertConfig):
    model_type = "net"

class Net(BertForSequenceClassification):
    config_class = NetConfig
"""
AUTO = "AutoModelForSequenceClassification"


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module with a classifier, in a folder that is imported from and worked in."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return importlib.import_module("nets")


def net(nets):
    torch.manual_seed(0)
    return nets.Net(nets.NetConfig.from_dict(tiny.bert().config.to_dict()))


def registered(nets, auto_class=AUTO):
    nets.NetConfig.register_for_auto_class()
    nets.Net.register_for_auto_class(auto_class)
    return net(nets)


def train(model, folder):
    """A step, and the code of its card."""
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
    args = MaxSupTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, max_steps=1, save_strategy="no")
    rows = tiny.rows(tiny.batch("bert", size=4))
    trainer = MaxSupTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(tasks="text-classification")
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def test_code_saved_beside_the_model(nets, tmp_path, capsys):
    (code,) = train(registered(nets), tmp_path / "out")
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.splitlines() == re.findall("^# (.*)$", code, re.MULTILINE)


def test_an_adapter_of_a_model_with_its_own_code(nets, tmp_path, capsys):
    peft = pytest.importorskip("peft", reason="adapters need PEFT")
    registered(nets).save_pretrained("base")
    base = AutoModelForSequenceClassification.from_pretrained("base", trust_remote_code=True)
    lora = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    (code,) = train(peft.get_peft_model(base, lora), tmp_path / "out")
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.strip() in map(str, range(tiny.CLASSES))
    base.config.save_pretrained("out")  # which has the names of the classes
    assert load_to_predict(predict_parser().parse_args(["out", "--trust_remote_code"]))[1] == "text-classification"


def test_an_adapter_added_by_transformers_is_recorded(nets, tmp_path):
    peft = pytest.importorskip("peft", reason="adapters need PEFT")
    model = tiny.bert()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    assert train(model, tmp_path / "out") == []
    assert "cannot be used without its base model" in (tmp_path / "out" / "README.md").read_text()


def test_a_class_that_is_imported(nets, tmp_path):
    (code,) = train(net(nets), tmp_path / "out")
    names = {}
    exec(code, names)
    assert type(names["model"]) is nets.Net


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Embedding(40, tiny.CLASSES)

    def forward(self, input_ids, labels=None, **kwargs):
        logits = self.scores(input_ids).mean(1)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_class_that_cannot_be_loaded_has_no_code(tmp_path):
    assert train(Scores(), tmp_path / "out") == []
    assert "The class of the model, `Scores`, is not one of transformers" in (tmp_path / "out" / "README.md").read_text()


def test_what_loads_a_model(nets):
    stale = tiny.bert()  # of a repository whose code became a part of transformers
    stale.config.auto_map = {AUTO: "modeling.BertForSequenceClassification"}
    assert how_to_load(stale) == how_to_load(tiny.bert()) == {"class": "BertForSequenceClassification"}
    assert how_to_load(base_model(torch.compile(tiny.vit()))) == {"class": "ViTForImageClassification"}
    derived = type("Mine", (type(stale),), {"forward": None, "__module__": "__main__"})
    assert how_to_load(derived(stale.config)) == {"class": "BertForSequenceClassification"}
    larger = type("Larger", (derived,), {"__init__": lambda self, config: derived.__init__(self, config)})
    assert how_to_load(larger(stale.config)) == {"class": "Larger", "module": __name__}
    assert how_to_load(net(nets)) == {"class": "Net", "module": "nets"}
    assert how_to_load(registered(nets)) == {"class": "Net", "auto_class": AUTO}
    sharded = registered(nets)  # as by fully_shard
    sharded.__class__ = type("FSDPNet", (type(sharded),), {"__module__": "torch.distributed.fsdp._fully_shard"})
    assert how_to_load(sharded) == {"class": "Net", "auto_class": AUTO}
    nets.Net.__module__ = "__main__"
    assert how_to_load(net(nets)) == {"class": "Net", "module": ""}


def test_the_names_of_a_class_include_the_auto_class_that_loads_it():
    auto_map = {"AutoConfig": "nets.NetConfig", AUTO: "nets.Net", "AutoModel": "nets.Body"}
    assert names_of_its_class(BertConfig(architectures=["Net"], auto_map=auto_map)) == ["Net", AUTO]
    assert names_of_its_class(BertConfig()) == []


def test_predict_and_analyze_load_it(nets, tmp_path):
    train(registered(nets), tmp_path / "out")
    words = ["out", "--trust_remote_code"]
    predicting, task = load_to_predict(predict_parser().parse_args(words))
    analyzed, same = load_to_analyze("out", analyze_parser().parse_args(words))
    assert type(predicting.model).__name__ == type(analyzed).__name__ == "Net" and task == same == "text-classification"


@pytest.mark.parametrize(
    ("change", "example", "message"),
    [
        ("raise RuntimeError('a bug')", "a text", "cannot be loaded: a bug"),
        ("import no_such_package", "a text", "not found in your environment: no_such_package"),
        ("", "word " * 600, "does not answer this example"),
    ],
)
def test_an_example_that_fails_is_refused(change, example, message, nets, tmp_path, capsys):
    train(registered(nets), tmp_path / "out")
    shutil.copy("out/run.json", "before.json")
    with open("out/nets.py", "a") as file:
        file.write(f"\n{change}\n")
    with pytest.raises(SystemExit) as stop:
        cli.main(["card", "out", "--example", example, "--trust_remote_code"])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert (tmp_path / "before.json").read_bytes() == (tmp_path / "out" / "run.json").read_bytes()


def test_a_generic_auto_class_only_loads(nets, tmp_path):
    (code,) = train(registered(nets, "AutoModel"), tmp_path / "out")
    names = {}
    exec(code, names)
    assert "pipeline" not in names and type(names["model"]).__name__ == "Net"
