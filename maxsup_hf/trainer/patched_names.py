"""The names by which a model's code reaches cross-entropy, and what stands there during a training step.

Most code calls `torch.nn.functional.cross_entropy` as an attribute of its module, where one replacement is enough. Two
spellings need more:

- `from torch.nn.functional import cross_entropy` binds the function in the importing file.
- torch.compile recognizes a `CrossEntropyLoss()` created in a forward by its class, and never looks at the function that it
  calls. In the files that define the model's classes, `CrossEntropyLoss` and `nn` are therefore replaced as well. `torch.nn`
  itself is left alone: torch.compile would take whatever it finds there for the class that it knows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CROSS_ENTROPY: Any = nn.functional.cross_entropy


class BoundName(NamedTuple):
    """A name in a file, and the object that it refers to outside of training steps."""

    file: ModuleType
    name: str
    original: Any


def find_names(model: nn.Module, owners: Iterable[type]) -> list[BoundName]:
    """All names to replace besides `torch.nn.functional.cross_entropy` itself.

    Args:
        model: as it is called. Walking its submodules sees through PEFT, DDP, FSDP and encoder-decoders.
        owners: further classes (the Trainer's) whose files may have imported the function by name.
    """
    model_files = _files(type(module) for module in model.modules())
    found = []
    for file in model_files | _files(owners):
        found += [BoundName(file, name, value) for name, value in vars(file).items() if value is CROSS_ENTROPY]
    for file in model_files:
        for name, original in (("CrossEntropyLoss", nn.CrossEntropyLoss), ("nn", nn)):
            if vars(file).get(name) is original:
                found.append(BoundName(file, name, original))
    return found


def _files(classes: Iterable[type]) -> set[ModuleType]:
    """The modules that define these classes or their bases, except torch's own."""
    names = {base.__module__ for each in classes for base in each.__mro__}
    return {sys.modules[name] for name in names if name.partition(".")[0] != "torch" and name in sys.modules}


def make_replacements(patch: Any) -> dict[Any, Any]:
    """Original object -> its replacement, for one `CrossEntropyPatch`.

    Called once per training: a class or closure that is new in every step would make torch.compile trace again.
    """
    criterion = type("CrossEntropyLoss", (_Criterion,), {"patch": patch})
    namespace = ModuleType(nn.__name__)
    vars(namespace).update(vars(nn), CrossEntropyLoss=criterion)
    return {CROSS_ENTROPY: patch.cross_entropy, nn.CrossEntropyLoss: criterion, nn: namespace}


class _IsCriterion(type):
    """Lets `isinstance(loss, CrossEntropyLoss)` in a model's file keep its meaning while the name is replaced."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, nn.CrossEntropyLoss) or type.__instancecheck__(cls, instance)


class _Criterion(metaclass=_IsCriterion):
    """Replaces `torch.nn.CrossEntropyLoss`.

    Not a module, because an `nn.Module` created in a forward breaks compiled graphs. In eager mode calling the class returns
    the original module, which reaches the patch through the function that it calls.
    """

    patch: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls) if torch.compiler.is_compiling() else nn.CrossEntropyLoss(*args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any):
        names = ("weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
        self.options = dict(zip(names, args, strict=False)) | kwargs

    def to(self, *args: Any, **kwargs: Any) -> _Criterion:
        return self

    def __call__(self, input: Tensor, target: Tensor) -> Tensor:
        return self.patch.cross_entropy(input, target, **self.options)
