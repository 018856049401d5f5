"""Every family of heads inside what users wrap models in; DDP and FSDP are in test_distributed.py."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import Trainer, TrainingArguments

from tests import tiny
from tests.heads import HEADS
from tests.trainer.trainings import build, ours

FAMILIES = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
# One family of each way to compute a loss: its graphs are differentiated by AOTAutograd too, which takes twice as long as
# finding them.
DIFFERENTIATED = ["image classification", "question answering", "masked lm, held criterion", "causal lm",
                  "mixture of experts", "T5", "semantic segmentation"]  # fmt: skip


@FAMILIES
def test_peft(head, tmp_path):
    model, batch = build(head)
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    expected, reference = tiny.gradients(Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True)), [batch])
    value, gradient = tiny.gradients(ours(model, tmp_path, "cross_entropy"), [batch])
    assert value == pytest.approx(expected, rel=1e-6)
    assert tiny.relative_error(gradient, reference) <= 1e-6
    whole, reference = tiny.gradients(ours(model, tmp_path, "maxsup"), [batch])
    assert whole > value
    if head.additive:
        _, gradient = tiny.gradients(ours(model, tmp_path, "maxsup"), tiny.cut(batch, [3, 3, 2]))
        assert tiny.relative_error(gradient, reference) <= 1e-6


@pytest.mark.parametrize("name", HEADS)
def test_compile(name, tmp_path):
    def compiled(trainer, backend):
        """Number of graphs and the gradients of a first and a second step, compiled."""
        torch._dynamo.reset()
        counter = CompileCounterWithBackend(backend)
        wrapped = torch.compile(trainer.model, backend=counter)
        results = []
        for _ in range(2):
            samples, num_items = trainer.get_batch_samples(iter([dict(batch)]), 1, trainer.args.device)
            trainer.current_gradient_accumulation_steps = 1
            trainer.model.zero_grad()
            loss = trainer.training_step(wrapped, samples[0], num_items).item()
            results.append((loss, {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}))
        return sum(len(graph.graph.nodes) > 0 for graph in counter.graphs), results

    model, batch = build(HEADS[name])
    expected, reference = tiny.gradients(ours(model, tmp_path, "maxsup"), [batch])
    # graphs are counted before a backend gets them, so that the fastest one can count
    graphs_of_stock, _ = compiled(Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True)), "eager")
    graphs, results = compiled(ours(model, tmp_path, "maxsup"), "aot_eager" if name in DIFFERENTIATED else "eager")
    assert graphs <= graphs_of_stock
    for loss, gradient in results:
        assert loss == pytest.approx(expected, rel=1e-5)
        # what the loss does not reach has a gradient of zeros in a compiled graph, and none in eager
        assert all(not value.any() for key, value in gradient.items() if key not in reference)
        assert tiny.relative_error({key: gradient[key] for key in reference}, reference) <= 1e-5
