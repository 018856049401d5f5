"""Heads whose name ends in LMHead, LMHeadModel or Decoder: however a batch is cut, MaxSup's gradient is that of the whole.

They are a list of their own because their loss is written in their own forward: some shift the labels there and some do not,
whatever `loss_type` says.
"""

import inspect
import re

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from maxsup_hf import MaxSupTrainer, MaxSupTrainingArguments
from tests import tiny
from tests.support.build import build
from tests.support.inputs import B, batch

NAMES = [
    name
    for name in dir(transformers)
    if re.search(r"LMHead|Decoder$", name)
    and isinstance(cls := getattr(transformers, name), type)
    and issubclass(cls, PreTrainedModel)
    and getattr(cls, "config_class", None)
]
WITHOUT_LOSS = {"ClvpDecoder", "ProphetNetDecoder"}  # parts of a model that take no labels
ROWS = torch.arange(8) % B


def eight_rows(model):
    """Eight rows of 6, 10 or 16 counted labels, so that no two micro-batches of two rows are alike."""
    inputs = batch(model)
    assert all(len(value) == B for value in inputs.values())
    return {key: value[ROWS] for key, value in inputs.items()}


def without_noise(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in vars(model.config):
        if "dropout" in name and isinstance(getattr(model.config, name), float):
            setattr(model.config, name, 0.0)
    return model


@pytest.mark.parametrize("name", sorted(set(NAMES) - WITHOUT_LOSS))
def test_the_gradient_does_not_depend_on_the_cut(name, tmp_path):
    model = without_noise(build(getattr(transformers, name), sizes=True))
    trainer = MaxSupTrainer(model, MaxSupTrainingArguments(str(tmp_path), use_cpu=True))
    data = eight_rows(model)
    whole, reference = tiny.gradients(trainer, [data])
    errors = {}
    for label, sizes in {"8 of 1": [1] * 8, "4 of 2": [2] * 4, "5 and 3": [5, 3]}.items():
        value, gradient = tiny.gradients(trainer, tiny.cut(data, sizes))
        errors[f"loss, {label}"] = abs(value - whole) / abs(whole)
        errors[f"gradient, {label}"] = tiny.relative_error(gradient, reference)
    assert max(errors.values()) <= 1e-6, errors


def test_the_list_is_complete():
    """A head that transformers adds is tried, or is in `WITHOUT_LOSS` and takes no labels."""
    assert {"GPT2LMHeadModel", "BertLMHeadModel", "OpenAIGPTLMHeadModel", "XLNetLMHeadModel"} <= set(NAMES)
    for name in WITHOUT_LOSS & set(NAMES):
        assert "labels" not in inspect.signature(getattr(transformers, name).forward).parameters, name
