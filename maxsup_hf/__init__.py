"""MaxSup for the Hugging Face ecosystem: one flag where label smoothing stood."""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maxsup_hf.data.mixup import MixupCollator
    from maxsup_hf.losses import create_loss, list_losses, ls_decomposition, register_loss
    from maxsup_hf.losses._fused_linear import fused_linear_loss
    from maxsup_hf.losses._vocab_parallel import vocab_parallel_loss
    from maxsup_hf.losses.maxsup import maxsup_loss
    from maxsup_hf.trainer import MaxSupMixin, MaxSupSeq2SeqTrainer, MaxSupTrainer
    from maxsup_hf.trainer.compute_loss import compute_loss_func
    from maxsup_hf.trainer.training_args import (
        MaxSupArgumentsMixin,
        MaxSupSeq2SeqTrainingArguments,
        MaxSupTrainingArguments,
    )

__version__ = version("maxsup-hf")

# Imported on first use: the losses must not cost the import of transformers, nor `maxsup-hf --help` that of torch.
_HOME = {
    "MaxSupArgumentsMixin": "trainer.training_args",
    "MaxSupMixin": "trainer",
    "MaxSupSeq2SeqTrainer": "trainer",
    "MaxSupSeq2SeqTrainingArguments": "trainer.training_args",
    "MaxSupTrainer": "trainer",
    "MaxSupTrainingArguments": "trainer.training_args",
    "MixupCollator": "data.mixup",
    "compute_loss_func": "trainer.compute_loss",
    "create_loss": "losses",
    "fused_linear_loss": "losses._fused_linear",
    "list_losses": "losses",
    "ls_decomposition": "losses",
    "maxsup_loss": "losses.maxsup",
    "register_loss": "losses",
    "vocab_parallel_loss": "losses._vocab_parallel",
}

__all__ = [
    "MaxSupArgumentsMixin",
    "MaxSupMixin",
    "MaxSupSeq2SeqTrainer",
    "MaxSupSeq2SeqTrainingArguments",
    "MaxSupTrainer",
    "MaxSupTrainingArguments",
    "MixupCollator",
    "compute_loss_func",
    "create_loss",
    "fused_linear_loss",
    "list_losses",
    "ls_decomposition",
    "maxsup_loss",
    "register_loss",
    "vocab_parallel_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'maxsup_hf' has no attribute {name!r}")
    return getattr(import_module(f"maxsup_hf.{_HOME[name]}"), name)


# Where modules of version 0.1 are now. `training_args.bin` of every checkpoint names `maxsup_hf.arguments`.
_MOVED = {
    "analysis.analyze": "analysis.pipeline",
    "analysis.features": "trainer.features",
    "analyze": "analysis.cli",
    "arguments": "trainer.training_args",
    "callbacks": "trainer.callbacks",
    "checkpoints": "trainer.checkpointing",
    "checks": "trainer.validation",
    "class_weights": "trainer.class_weights",
    "compute_loss": "trainer.compute_loss",
    "cross_entropy_patch": "trainer.cross_entropy_patch",
    "fused_linear": "losses._fused_linear",
    "mixup": "data.mixup",
    "normalization": "trainer.normalization",
    "reduction": "losses._reduction",
    "schedules": "losses._schedules",
    "sft": "trainer.sft",
    "vocab_parallel": "losses._vocab_parallel",
}


class _MovedModules(MetaPathFinder, Loader):
    """Import a module by the name it had in version 0.1."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "maxsup_hf" and name in _MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(f"maxsup_hf.{_MOVED[spec.name.partition('.')[2]]}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # the module ran under its new name, and keeps it


sys.meta_path.append(_MovedModules())
