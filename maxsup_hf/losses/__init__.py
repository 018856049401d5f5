"""The losses, one file each; `create_loss(name)` makes one. Importing this package registers all of them."""

from importlib import import_module
from pkgutil import iter_modules

from maxsup_hf.losses._decomposition import ls_decomposition
from maxsup_hf.losses._loss import Loss, create_loss
from maxsup_hf.losses._output import LossOutput
from maxsup_hf.losses._reduction import IGNORE_INDEX
from maxsup_hf.losses._registry import get_spec, list_losses, register_loss
from maxsup_hf.losses._spec import LossSpec, flatten, prefix_of

__all__ = [
    "IGNORE_INDEX",
    "Loss",
    "LossOutput",
    "LossSpec",
    "create_loss",
    "flatten",
    "get_spec",
    "list_losses",
    "ls_decomposition",
    "prefix_of",
    "register_loss",
]

for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")
