"""`class T(MaxSupMixin, SFTTrainer)` as it stands, against a loss made by hand of the logits of the collated batches."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from maxsup_hf import MaxSupArgumentsMixin, MaxSupMixin, MaxSupTrainingArguments
from maxsup_hf.trainer.sft import check_trl, sft_loss
from tests import tiny, warm
from tests.launch import two_processes

trl = pytest.importorskip("trl", reason="needs TRL, of the extra 'examples'")
peft = pytest.importorskip("peft", reason="needs PEFT, of the extra 'examples'")

WORDS = ["<pad>", "<s>", "</s>", "user", "assistant", *(f"w{i}" for i in range(35))]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %} {% endfor %}"
)
SIZES = {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SETTINGS = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [], "disable_tqdm": True,
    "save_strategy": "no", "logging_steps": 1, "max_steps": 1, "optim": "sgd", "learning_rate": 0.0,
}  # fmt: skip


@dataclass
class Arguments(MaxSupArgumentsMixin, trl.SFTConfig):
    pass


class Mixed(MaxSupMixin, trl.SFTTrainer):
    pass


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, router_aux_loss_coef=0.5))


def tokenizer():
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.chat_template = TEMPLATE
    return made


def said(i, n):
    return " ".join(f"w{(3 * i + j * j) % 35}" for j in range(n))


def texts(n=8):
    return [{"text": said(i, 2 + 2 * (i % 8))} for i in range(n)]


def completions():
    return [{"prompt": f"{said(i, 9 - i)} ", "completion": said(i, 1 + i * i // 2)} for i in range(8)]


def chats():
    turns = [("user", 3), ("assistant", 1), ("user", 2), ("assistant", 2)]
    return [{"messages": [{"role": role, "content": said(i, n * (1 + i))} for role, n in turns]} for i in range(8)]


MODES = {
    "texts": (texts(), {}),
    "nll": (texts(), {"loss_type": "nll"}),
    "chunked_nll": (texts(), {"loss_type": "chunked_nll"}),
    "completion-only": (completions(), {}),
    "whole text of completions": (completions(), {"completion_only_loss": False}),
    "assistant-only": (chats(), {"assistant_only_loss": True}),
    "padding-free": (texts(), {"padding_free": True, "max_length": None}),
    "packing": (texts(16), {"packing": True, "max_length": 20}),
    "wrapped packing": (texts(16), {"packing": True, "packing_strategy": "wrapped", "max_length": 17}),
    "packed completions": (completions() * 2, {"packing": True, "max_length": 24}),
    "lora": (completions(), {}),
    "virtual tokens": (completions(), {}),
    "virtual tokens before every text": (texts(), {}),
    "checkpointing": (texts(), {"gradient_checkpointing": True}),
}
PROCESS_CASES = [(mode, fused) for mode in ("completion-only", "padding-free") for fused in (False, True)]
CUTS = ((8, 1), (2, 4), (1, 8))


def adapter(mode):
    if mode == "lora":
        return peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    if mode.startswith("virtual tokens"):
        return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return None


def trainer(mode, folder, cut=(8, 1), cls=Mixed, config=Arguments, model=llama, **kwargs):
    rows, options = MODES[mode]
    given = SETTINGS | {"per_device_train_batch_size": cut[0], "gradient_accumulation_steps": cut[1]}
    if config is Arguments:
        given |= {"loss": "maxsup", "loss_kwargs": {"alpha": 0.1, "alpha_end": None}}
    made = cls(
        model(), config(str(folder), **given | options | kwargs), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(), peft_config=adapter(mode),
    )  # fmt: skip
    made._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(made.train_dataset)
    return made


def by_hand(made, batches):
    """(cross-entropy, penalty, gradients, entropy, accuracy) of all tokens that are trained, each weighing as much."""
    made.model.zero_grad()
    made.model.train()
    rows, targets = [], []
    for batch in batches:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        logits, labels = made.model(**inputs, use_cache=False).logits, batch["labels"]
        logits = logits[:, logits.shape[1] - labels.shape[1] :]
        kept = labels[:, 1:] != -100
        rows.append(logits[:, :-1][kept])
        targets.append(labels[:, 1:][kept])
    z, target = torch.cat(rows), torch.cat(targets)
    plain, penalty = cross_entropy(z, target), 0.1 * (z.amax(-1) - z.mean(-1)).mean()
    (plain + penalty).backward()
    gradients = {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}
    q = z.detach().softmax(-1)
    entropy, right = -(q * q.log()).sum(-1).mean(), (z.argmax(-1) == target).float().mean()
    return plain.item(), penalty.item(), gradients, entropy.item(), right.item()


@pytest.mark.parametrize("fused", [False, True], ids=["logits", "fused"])
@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: "{}x{}".format(*cut))
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradient_are_those_of_the_logits(mode, cut, fused, tmp_path):
    made = trainer(mode, tmp_path, cut, fused_linear_loss=fused)
    batches = list(made.get_train_dataloader())[: cut[1]]
    assert len(batches) == cut[1]
    plain, penalty, reference, *_ = by_hand(made, batches)
    value, found = tiny.gradients(made, batches)
    assert penalty > 0.01
    assert value == pytest.approx(plain + penalty, rel=1e-6)
    assert tiny.relative_error(found, reference) <= 1e-6


def test_two_processes_make_the_step_of_one(tmp_path):
    two_processes(Path(__file__).with_name("sft_processes.py"), tmp_path / "found.pt")
    for (mode, _), (found, log, processes) in torch.load(tmp_path / "found.pt").items():
        whole = trainer(mode, tmp_path)
        (batch,) = list(whole.get_train_dataloader())
        plain, penalty, reference, *_ = by_hand(whole, [batch])
        assert processes == 2
        assert tiny.relative_error(found, reference) <= 1e-6
        assert (log["loss"], log["train_penalty"]) == pytest.approx((plain + penalty, penalty), abs=1e-4)
        tokens = batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()
        assert log["num_tokens"] == tokens


@pytest.mark.parametrize("mode", ["completion-only", "assistant-only", "packed completions"])
def test_micro_batches_train_very_different_numbers_of_tokens(mode, tmp_path):
    made = trainer(mode, tmp_path, (1, 8))
    trained = [int((batch["labels"][:, 1:] != -100).sum()) for batch in made.get_train_dataloader()]
    everything = [batch["labels"].numel() for batch in made.get_train_dataloader()]
    assert max(trained) >= 2 * min(trained)
    assert sum(trained) < sum(everything) - 2 * len(trained), "prompts are not masked"


@pytest.mark.parametrize("fused", [False, True], ids=["logits", "fused"])
@pytest.mark.parametrize("mode", ["completion-only", "padding-free", "virtual tokens"])
def test_logs_are_trls_and_ours(mode, fused, tmp_path):
    made = trainer(mode, tmp_path, fused_linear_loss=fused)
    (batch,) = list(made.get_train_dataloader())
    plain, penalty, _, entropy, right = by_hand(made, [batch])
    made.train()
    log = made.state.log_history[0]
    parts = [log[name] for name in ("loss", "train_cross_entropy", "train_penalty")]
    assert parts == pytest.approx([plain + penalty, plain, penalty], abs=1e-4)
    tokens = batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()
    assert log["num_tokens"] == tokens
    if fused:  # there are no logits
        assert "entropy" not in log and "mean_token_accuracy" not in log
    else:
        assert log["entropy"] == pytest.approx(entropy, rel=1e-4)
        assert log["mean_token_accuracy"] == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("mode", ["texts", "completion-only", "padding-free", "lora"])
def test_logs_are_those_of_sft_trainer(mode, tmp_path):
    found = {}
    for cls, config in ((Mixed, Arguments), (trl.SFTTrainer, trl.SFTConfig)):
        made = trainer(mode, tmp_path, (2, 4), cls, config)
        made.train()
        found[cls] = made.state.log_history[0]
    assert found[trl.SFTTrainer].keys() <= found[Mixed].keys()
    assert found[Mixed]["train_cross_entropy"] == pytest.approx(found[trl.SFTTrainer]["loss"], abs=1e-4)
    for name in ("entropy", "mean_token_accuracy", "num_tokens"):
        assert found[Mixed][name] == pytest.approx(found[trl.SFTTrainer][name], rel=1e-4)


@pytest.mark.parametrize("fused", [False, True], ids=["logits", "fused"])
def test_router_loss_is_trained_beside_ours(fused, tmp_path):
    found = {}
    for loss, cls, config in (("cross_entropy", Mixed, Arguments), (None, trl.SFTTrainer, trl.SFTConfig)):
        ours = {"loss": loss, "loss_kwargs": None, "fused_linear_loss": fused} if loss else {}
        made = trainer("texts", tmp_path, cls=cls, config=config, model=mixtral, learning_rate=1.0, **ours)
        made.train()
        log = made.state.log_history[0]
        found[cls] = log["loss"], log["aux_loss"], {name: p.detach() for name, p in made.model.named_parameters()}
    assert found[Mixed][:2] == pytest.approx(found[trl.SFTTrainer][:2], abs=1e-4)
    assert tiny.relative_error(found[Mixed][2], found[trl.SFTTrainer][2]) <= 1e-6


@pytest.mark.parametrize("mode", ["texts", "completion-only", "lora"])
@pytest.mark.parametrize("fused", [False, True], ids=["logits", "fused"])
def test_evaluation_is_that_of_sft_trainer(mode, fused, tmp_path):
    made = trainer(mode, tmp_path, fused_linear_loss=fused)
    made.train()
    stock = trainer(mode, tmp_path, cls=trl.SFTTrainer, config=trl.SFTConfig)
    ours, theirs = made.evaluate(made.train_dataset), stock.evaluate(stock.train_dataset)
    for name in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


def test_compute_loss_of_a_class_in_between(tmp_path):
    """It calls SFTTrainer's own, which in training is ours, and elsewhere is as it was."""

    class Doubled(trl.SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return (2 * found[0], found[1]) if return_outputs else 2 * found

    original = trl.SFTTrainer.compute_loss
    made = trainer("texts", tmp_path, (2, 4), type("T", (MaxSupMixin, Doubled), {}))
    batches = list(made.get_train_dataloader())
    plain, penalty, reference, *_ = by_hand(made, batches)
    value, found = tiny.gradients(made, batches)
    assert value == pytest.approx(2 * (plain + penalty), rel=1e-6)
    assert tiny.relative_error(found, {name: 2 * each for name, each in reference.items()}) <= 1e-6
    assert trl.SFTTrainer.compute_loss is original


def test_checkpoints_are_written_and_resumed(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.1}
    whole = trainer("lora", tmp_path, (2, 1), **options)
    whole.train()
    weights = {name: p.detach().clone() for name, p in whole.model.named_parameters()}
    resumed = trainer("lora", tmp_path, (2, 1), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert tiny.relative_error({name: p.detach() for name, p in resumed.model.named_parameters()}, weights) <= 1e-6
    assert resumed.state.log_history[-2]["num_tokens"] > 0
    assert "maxsup" in (tmp_path / "README.md").read_text()


def test_the_package_does_not_import_trl(tmp_path):
    code = "import sys, maxsup_hf.trainer.sft; sys.exit('trl' in sys.modules)"
    assert warm.run("-c", code, cwd=tmp_path).returncode == 0


# ---- what is refused ----


@pytest.mark.parametrize("loss_type", ["dft", "focal"])
def test_another_loss_type_is_refused(loss_type, tmp_path):
    with pytest.raises(ValueError, match=f"loss_type must be one of 'nll', .* got '{loss_type}': leave loss_type out"):
        trainer("texts", tmp_path, loss_type=loss_type)


def test_a_loss_type_that_was_set_later_is_refused(tmp_path):
    made = trainer("texts", tmp_path)
    made.args.loss_type = "dft"
    with pytest.raises(ValueError, match="loss_type must be one of"):
        made.train()


def test_arguments_without_those_of_trl_are_refused(tmp_path):
    with pytest.raises(TypeError, match="must be a SFTConfig with the fields of MaxSupArgumentsMixin, got MaxSupTraining"):
        trainer("texts", tmp_path, config=MaxSupTrainingArguments)
    with pytest.raises(TypeError, match=r"got SFTConfig: .* derive a class from \(MaxSupArgumentsMixin, SFTConfig\)"):
        trainer("texts", tmp_path, config=trl.SFTConfig)


def test_sequences_divided_among_ranks_are_refused():
    owner = SimpleNamespace(args=SimpleNamespace(loss="maxsup"))
    with pytest.raises(ValueError, match="context or sequence parallelism"):
        sft_loss(owner, None, {"shift_labels": torch.zeros(1, 2)})


REFUSED = "trains on the loss of TRL's {}, which is not a cross-entropy over classes"


def preference(name, folder):
    """One of TRL's trainers under the mixin, as its user would make it."""
    config = dataclass(type("Config", (MaxSupArgumentsMixin, getattr(trl, f"{name}Config")), {}))
    mixed = type(f"{name}Mixed", (MaxSupMixin, getattr(trl, f"{name}Trainer")), {})
    rows = [{"prompt": "w1 w2 ", "chosen": said(i, 3), "rejected": said(i, 2)} for i in range(4)]
    reward = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1))
    model, own = {
        "DPO": (llama(), {"ref_model": llama()}),
        "Reward": (reward, {}),
        "GRPO": (llama(), {"reward_funcs": lambda completions, **kwargs: [float(len(text)) for text in completions]}),
    }[name]
    generations = {"num_generations": 2, "max_completion_length": 4} if name == "GRPO" else {}
    args = config(str(folder), **SETTINGS | {"per_device_train_batch_size": 2, "learning_rate": 0.1} | generations)
    return mixed(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(), **own)


@pytest.mark.parametrize("name", ["DPO", "Reward", "GRPO"])
def test_trainers_without_classes_are_refused(name, tmp_path):
    made = preference(name, tmp_path)
    before = {key: value.clone() for key, value in made.model.state_dict().items()}
    with pytest.raises(ValueError, match=REFUSED.format(f"{name}Trainer")) as caught:
        made.train()
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in made.model.state_dict().items())


def test_which_class_decides():
    def named(name, *bases, **methods):
        return type(name, bases, {"__module__": "trl.experimental", **methods})

    loss = {"compute_loss": lambda self: None}
    distilled = named("GKDTrainer", trl.SFTTrainer, **loss)
    stepwise = named("OnlineDPOTrainer", named("_BaseTrainer"), training_step=lambda self: None)
    looped = named("PPOTrainer", named("_BaseTrainer"), train=lambda self: None)
    for base in (distilled, stepwise, looped):
        with pytest.raises(ValueError, match=REFUSED.format(base.__name__)):
            check_trl(type("T", (MaxSupMixin, base), {}), MaxSupMixin)
    users = type("Users", (trl.DPOTrainer,), loss)  # its first step tells whether this is a cross-entropy
    for base in (trl.SFTTrainer, type("Sub", (trl.SFTTrainer,), {}), users):
        check_trl(type("T", (MaxSupMixin, base), {}), MaxSupMixin)
