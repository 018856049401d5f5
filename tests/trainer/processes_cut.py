"""Run by two processes, or by one: writes how one step of the Trainer changes the weights of several models.

    python tests/trainer/processes_cut.py one OUTPUT     # one batch of 8 rows
    accelerate launch --multi_gpu --num_processes 2 tests/trainer/processes_cut.py ddp OUTPUT  # or fully_shard
    torchrun --nproc_per_node 2 tests/trainer/processes_cut.py zero2 OUTPUT   # or zero3 (DS_ACCELERATOR=cpu)

The step is one of plain gradient descent, so that the change is the gradient, also where each rank holds a part of it.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from tests.launch import end_of_a_rank
from tests.trainer.distributed_gradients import shard

WEIGHTS = torch.tensor([1.0, 20.0, 1.0, 1.0, 0.1])
GPT = dict(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=40, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
BERT = dict(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=5)
BERT |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
LLAMA = dict(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


class WeightedTrainer(MaxSupTrainer):
    """As transformers' documentation has it."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.CrossEntropyLoss(weight=WEIGHTS)(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


class WeightedHead(BertForSequenceClassification):
    def forward(self, input_ids=None, labels=None, **kwargs):
        logits = super().forward(input_ids=input_ids).logits
        loss = None if labels is None else F.cross_entropy(logits, labels, weight=WEIGHTS)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def texts():
    """Eight of very different lengths."""
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(3, 60, (n,), generator=generator)} for n in (2, 20, 3, 18, 30, 2, 3, 25)]


def padded(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.stack([F.pad(row["input_ids"], (0, longest - len(row["input_ids"])), value=-1) for row in rows])
    labels = ids.masked_fill(ids == -1, -100)
    return {"input_ids": ids.clamp_min(0), "attention_mask": (ids != -1).long(), "labels": labels}


def classes():
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(3, 60, (7,), generator=generator), "labels": i * i % 5} for i in range(8)]


def tags():
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 60, (7,), generator=generator)} for _ in range(8)]
    for i, row in enumerate(rows):
        row["labels"] = torch.randint(5, (7,), generator=generator).masked_fill(torch.arange(7) < i % 6, -100)
    return rows


# Name -> how to make the model, its rows, the Trainer's class, further arguments
CASES = {
    "GPT2LMHeadModel": (lambda: GPT2LMHeadModel(GPT2Config(**GPT)), texts, MaxSupTrainer, {}),
    "OpenAIGPTLMHeadModel": (lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(**GPT)), texts, MaxSupTrainer, {}),
    "BertLMHeadModel": (lambda: BertLMHeadModel(BertConfig(**BERT, is_decoder=True)), texts, MaxSupTrainer, {}),
    "LlamaForCausalLM": (lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)), texts, MaxSupTrainer, {}),
    "weights in compute_loss": (lambda: BertForSequenceClassification(BertConfig(**BERT)), classes, WeightedTrainer, {}),
    "weights in the head": (lambda: WeightedHead(BertConfig(**BERT)), classes, MaxSupTrainer, {}),
    "class_weights": (
        lambda: BertForSequenceClassification(BertConfig(**BERT)), classes, MaxSupTrainer,
        {"class_weights": WEIGHTS.tolist()},
    ),
    "class_weights of tokens": (
        lambda: BertForTokenClassification(BertConfig(**BERT)), tags, MaxSupTrainer,
        {"class_weights": "balanced", "loss": "label_smoothing"},
    ),
}  # fmt: skip


def deepspeed(stage):
    # Gradients are clipped to 1 unless it is told otherwise.
    names = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {
        "zero_optimization": {"stage": stage}, "gradient_clipping": 0.0, "zero_allow_untested_optimizer": True,
        **dict.fromkeys(names, "auto"),
    }  # fmt: skip


def change(name, way, folder):
    """Parameter -> how far one step moved it."""
    make, rows, trainer_class, kwargs = CASES[name]
    sizes = (8, 1) if way == "one" else (2, 2)
    args = MaxSupTrainingArguments(
        folder, use_cpu=True, disable_tqdm=True, report_to=[], save_strategy="no", max_steps=1, optim="sgd",
        learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0.0, remove_unused_columns=False,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=sizes[0], gradient_accumulation_steps=sizes[1],
        deepspeed=deepspeed(int(way[-1])) if way.startswith("zero") else None, **kwargs,
    )  # fmt: skip
    torch.manual_seed(0)
    model = make()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    trainer = trainer_class(model, args, train_dataset=rows(), data_collator=padded if rows is texts else None)
    if way == "fully_shard":  # accelerate does it on GPUs only
        return sharded_change(trainer)
    trainer.train()
    return {key: gathered(value) - before[key.removeprefix("module.")] for key, value in trainer.model.named_parameters()}


def sharded_change(trainer):
    state, rows = PartialState(), trainer.train_dataset
    pairs = [trainer.data_collator(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    wrapped = shard(trainer.model, mesh=init_device_mesh("cpu", (state.num_processes,)))
    batches = pairs[state.process_index :: state.num_processes]
    samples, num_items = trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(samples)
    for sample in samples:
        trainer.training_step(wrapped, sample, num_items)
    gradients = {key: value.grad for key, value in trainer.model.named_parameters()}
    return {key: torch.zeros(()) if grad is None else -grad.full_tensor() for key, grad in gradients.items()}


def gathered(parameter):
    if hasattr(parameter, "ds_id"):  # ZeRO-3
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach().clone()


def main(way, output):
    changes = {name: change(name, way, f"{output}.out") for name in CASES}
    if int(os.environ.get("RANK", 0)) == 0:
        torch.save({"processes": PartialState().num_processes, "changes": changes}, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
    end_of_a_rank()
