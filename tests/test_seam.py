import pytest
import torch
from torch import nn
from torch.nn import CrossEntropyLoss
from transformers.loss import loss_utils
from transformers.models.bert import modeling_bert

from maxsup_hf import create_loss
from maxsup_hf.seam import Seam
from tests import tiny

ORIGINAL = loss_utils.fixed_cross_entropy


def restored():
    return loss_utils.fixed_cross_entropy is ORIGINAL and modeling_bert.CrossEntropyLoss is nn.CrossEntropyLoss


@pytest.mark.parametrize("name", tiny.CLASSIFIERS)
def test_the_loss_is_ours_inside_and_the_models_outside(name):
    model, batch = tiny.CLASSIFIERS[name](), tiny.batch(name)
    before = set(model.state_dict())
    seam = Seam(create_loss("maxsup", alpha=0.3))
    with seam.swapped(model):
        inside = model(**batch)
    assert restored()
    logits = inside.logits
    plain = torch.nn.functional.cross_entropy(logits, batch["labels"])
    penalty = 0.3 * (logits.amax(-1) - logits.mean(-1)).mean()
    torch.testing.assert_close(inside.loss, plain + penalty)
    torch.testing.assert_close(model(**batch).loss, plain)
    (output,) = seam.outputs
    torch.testing.assert_close(output.cross_entropy, plain)
    torch.testing.assert_close(output.penalty, penalty)
    assert set(model.state_dict()) == before


@pytest.mark.parametrize("name", tiny.CLASSIFIERS)
def test_names_are_restored_after_an_exception(name):
    model, batch = tiny.CLASSIFIERS[name](), tiny.batch(name)
    batch["labels"][0] = tiny.CLASSES
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\)"), Seam(create_loss("maxsup")).swapped(model):
        model(**batch)
    assert restored()


def test_a_class_derived_in_another_file_is_seen_through():
    class Derived(modeling_bert.BertForSequenceClassification):
        pass

    model = nn.Sequential(Derived(tiny.bert().config))  # and so is a wrapper
    seam = Seam(create_loss("maxsup"))
    with seam.swapped(model):
        model[0](**tiny.batch("bert"))
    assert len(seam.outputs) == 1 and restored()


class OwnModel(nn.Module):
    def __init__(self, smoothing=0.0):
        super().__init__()
        self.linear, self.smoothing = nn.Linear(4, 3), smoothing

    def forward(self, x, labels):
        logits = self.linear(x)
        return CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=self.smoothing)(logits, labels), logits


def test_a_model_of_ones_own_keeps_its_class_weights():
    model, x, labels = OwnModel(), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 1])
    seam = Seam(create_loss("maxsup", alpha=0.2))
    with seam.swapped(model):
        loss, logits = model(x, labels)
    plain = nn.functional.cross_entropy(logits, labels, torch.tensor([1.0, 2.0, 0.5]))
    torch.testing.assert_close(loss, plain + 0.2 * (logits.amax(-1) - logits.mean(-1)).mean())


def test_smoothing_inside_the_model_is_refused():
    with (
        pytest.raises(ValueError, match="smooths its own labels"),
        Seam(create_loss("maxsup")).swapped(model := OwnModel(0.1)),
    ):
        model(torch.randn(2, 4), torch.tensor([0, 1]))


def test_soft_labels_must_fit():
    model = tiny.vit()
    seam = Seam(create_loss("maxsup"))
    seam.soft_labels = torch.rand(8, 4).softmax(-1)
    with (
        pytest.raises(ValueError, match=r"soft_labels must have the shape of the logits, \(8, 5\), got \(8, 4\)"),
        seam.swapped(model),
    ):
        model(**tiny.batch("vit"))


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_compiled_model_has_no_more_graphs_and_compiles_once_for_a_schedule(name):
    from torch._dynamo.testing import CompileCounterWithBackend

    batch = tiny.batch(name)

    def graphs(steps):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        model = tiny.CLASSIFIERS[name](problem_type="single_label_classification")
        compiled = torch.compile(model, backend=counter)
        losses = [step(model, compiled) for step in steps]
        return sum(len(graph.graph.nodes) > 0 for graph in counter.graphs), losses

    def stock(model, compiled):
        return compiled(**batch).loss

    seam = Seam(create_loss("maxsup"))

    def ours(progress):
        def step(model, compiled):
            seam.set_progress(progress)
            seam.items = torch.tensor(4.0)
            with seam.swapped(model):
                loss = compiled(**batch).loss
                loss.backward()
            assert len(seam.outputs) == 1
            with seam.swapped(model):
                torch.testing.assert_close(model(**batch).loss, loss)
            return loss.item()

        return step

    stock_graphs, _ = graphs([stock, stock])
    our_graphs, losses = graphs([ours(0.0), ours(0.5), ours(1.0)])
    assert our_graphs <= stock_graphs
    assert losses[0] < losses[1] < losses[2]
