"""What `fused_linear_loss` does not support is rejected before training, or in the first step, with the reason."""

from types import SimpleNamespace

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from maxsup_hf import MaxSupTrainingArguments, list_losses
from maxsup_hf.data.mixup import MixupCollator
from tests import tiny
from tests.heads import LLAMA, V, causal
from tests.trainer.fused import SERVED, check_equal, rows_to_learn, trainer_of


def refused(model, folder, message, batch=None, error=ValueError, **kwargs):
    with pytest.raises(error, match=message):
        trainer = trainer_of(model, folder, data=rows_to_learn(8), **kwargs)
        if batch is None:
            trainer.train()
        else:
            tiny.gradients(trainer, [batch])
    assert all(p.grad is None for p in model.parameters())


def test_heads_without_an_output_embedding(tmp_path):
    refused(tiny.vit(), tmp_path, "but ViTForImageClassification has no output embedding")


@pytest.mark.parametrize("where", ["target_modules", "modules_to_save"])
def test_peft_on_the_output_embedding(where, tmp_path):
    model = get_peft_model(tiny.llama(), LoraConfig(**{"target_modules": ["q_proj"]} | {where: ["lm_head"]}))
    refused(model, tmp_path, "has a peft .* as its output embedding.*do not put adapters or modules_to_save on")


def test_a_wrapped_forward(tmp_path):
    model = tiny.llama()
    model.lm_head.forward = model.lm_head.forward
    refused(model, tmp_path, "output embedding whose forward is wrapped")


class Quantised(torch.Tensor):
    """As torchao keeps weights: in a plain nn.Linear, as a tensor of a class of its own."""


def test_quantised_output_embeddings(tmp_path):
    model = tiny.llama()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().as_subclass(Quantised))
    refused(model, tmp_path, "but LlamaForCausalLM has an output embedding whose weight is a Quantised")
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(40, 16, dtype=torch.int8), requires_grad=False)
    refused(model, tmp_path, "whose weight is a Parameter of torch.int8")


def test_output_embeddings_that_are_not_linear(tmp_path):
    model = tiny.llama()
    model.lm_head = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 40))
    refused(model, tmp_path, "but LlamaForCausalLM has a torch Sequential as its output embedding")


def test_soft_labels(tmp_path):
    model = tiny.llama()
    batch = {"input_ids": torch.randint(3, V, (2, 5)), "labels": torch.rand(2, 5, V).softmax(-1)}
    refused(model, tmp_path, "fused_linear_loss, asked for LlamaForCausalLM, does not support soft labels", batch)


@pytest.mark.parametrize("column", ["labels", "soft_labels"])
def test_soft_labels_in_a_data_set(column, tmp_path):
    rows = [{"input_ids": [3, 4], "labels": [3, 4]} | {column: [[0.5, 0.5], [0.1, 0.9]]}]
    trainer = trainer_of(tiny.llama(), tmp_path, data=datasets.Dataset.from_list(rows))
    with pytest.raises(
        ValueError, match="fused_linear_loss, asked for LlamaForCausalLM, cannot be combined with soft labels"
    ):
        trainer.train()


def test_mixup(tmp_path):
    trainer = trainer_of(tiny.llama(), tmp_path, data=rows_to_learn(8))
    trainer.data_collator = MixupCollator(num_classes=V)
    with pytest.raises(ValueError, match="cannot be combined with soft labels: leave out Mixup"):
        trainer.train()


def test_data_parallel_and_zero3(tmp_path):
    for name, value, message in (
        ("_n_gpu", 2, "cannot be combined with torch's DataParallel: start one process for each GPU"),
        ("hf_deepspeed_config", SimpleNamespace(is_zero3=lambda: True), "cannot be combined with DeepSpeed ZeRO-3"),
    ):
        trainer = trainer_of(tiny.llama(), tmp_path, data=rows_to_learn(8))
        trainer.check()
        setattr(trainer.args, name, value)
        with pytest.raises(ValueError, match=message):
            trainer.train()


@pytest.mark.parametrize("loss", [*sorted(set(list_losses()) - set(SERVED)), "maxsup+ls_regularization"])
def test_losses_that_need_logits(loss, tmp_path):
    with pytest.raises(ValueError, match="computes a loss from row statistics.*needs the logits themselves"):
        MaxSupTrainingArguments(str(tmp_path), use_cpu=True, loss=loss, fused_linear_loss=True)


def test_compiled_models(tmp_path, monkeypatch):
    refused(torch.compile(tiny.llama()), tmp_path, "cannot be combined with torch.compile")
    refused(tiny.llama(), tmp_path, "cannot be combined with torch.compile", torch_compile=True)
    in_place = tiny.llama()
    in_place.compile()
    refused(in_place, tmp_path, "asked for LlamaForCausalLM, cannot be combined with torch.compile")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")  # as accelerate launch --dynamo_backend does
    refused(tiny.llama(), tmp_path, "leave torch_compile and dynamo_backend out")


class Odd(LlamaForCausalLM):
    """What it does to its logits, and its cross-entropy, are set from outside."""

    change = staticmethod(lambda logits: logits)
    criterion = staticmethod(lambda z, y: torch.nn.functional.cross_entropy(z.reshape(-1, V), y.reshape(-1)))

    def forward(self, input_ids, labels=None, **kwargs):
        logits = self.change(self.lm_head(self.model(input_ids).last_hidden_state))
        return {"loss": self.criterion(logits, labels), "logits": logits}


def odd(**changed):
    model = Odd(LlamaConfig(**LLAMA))
    vars(model).update(changed)
    return model, causal(torch.Generator().manual_seed(1))


def test_an_odd_head_that_is_served(tmp_path):
    check_equal(*odd(change=lambda logits: -0.5 * logits[..., :V].float()), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits.softmax(-1), "reads 'softmax' of its logits"),
        (lambda logits: torch.sigmoid(logits), "applies sigmoid to its logits"),
        (lambda logits: logits[..., 1:], "selects some classes of its logits"),
        (lambda logits: logits * torch.ones(V), "multiplies its logits by a tensor"),
        (lambda logits: logits.tanh().tanh(), "applies tanh to its logits twice"),
        (lambda logits: 2 * logits + torch.ones(V), "adds something to its logits"),
        (lambda logits: logits - 1, "applies sub to its logits"),
    ],
)
def test_heads_that_need_their_logits(change, message, tmp_path):
    model, batch = odd(change=change)
    refused(model, tmp_path, f"fused_linear_loss cannot serve Odd, which {message}: leave fused_linear_loss out", batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": torch.ones(V)}, "applies class weights"),
        ({"reduction": "none"}, "needs the loss of each row"),
        (None, r"has the classes of its logits \(8, 9, 40\) in dimension 1"),
    ],
)
def test_cross_entropies_that_need_logits(options, message, tmp_path):
    def criterion(z, y):
        if options is None:
            return torch.nn.functional.cross_entropy(z, y)
        return torch.nn.CrossEntropyLoss(**options)(z.view(-1, V), y.view(-1)).mean()

    model, batch = odd(criterion=criterion)
    refused(model, tmp_path, f"fused_linear_loss cannot serve Odd, which {message}", batch)


def test_a_loss_that_does_not_come_from_the_output_embedding(tmp_path):
    class ByHand(LlamaForCausalLM):
        def forward(self, input_ids, labels=None, **kwargs):
            logits = self.model(input_ids).last_hidden_state @ self.lm_head.weight.T
            return {"loss": torch.nn.functional.cross_entropy(logits.reshape(-1, V), labels.reshape(-1)), "logits": logits}

    model, batch = ByHand(LlamaConfig(**LLAMA)), causal(torch.Generator())
    refused(model, tmp_path, "cannot serve ByHand, whose loss is not computed from the result of its output", batch)


def test_an_output_embedding_that_is_gone_before_the_loss(tmp_path):
    """As after the forward of a layer that ZeRO-3 or FSDP has sharded by itself."""

    def change(logits):
        model.lm_head.weight.untyped_storage().resize_(0)
        return logits

    model, batch = odd(change=change)
    refused(model, tmp_path, "cannot serve Odd, which has an output embedding that is sharded again", batch)
