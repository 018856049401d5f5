"""Models whose class is not one of transformers: what loads them, and what they are for."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel


def base_model(model: Any) -> Any:
    """The model that PEFT or torch.compile wraps; any other model itself."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def how_to_load(model: Any) -> dict[str, str]:
    """What loads a saved model.

    Returns:
        `class`, the name of its class. If that is not one of transformers, also `auto_class`, the class of transformers that
        loads it by the code that is saved beside its weights; else `module`, from which its class can be imported, empty
        where that is of no help.
    """
    # FSDP2 replaces the class of a model by one that it derives.
    found = next(each for each in type(model).__mro__ if not each.__module__.startswith("torch.distributed."))
    importable = found.__module__ != "__main__"
    auto_class = getattr(found, "_auto_class", None)
    if auto_class is not None and importable:  # transformers saves no code of `__main__`
        return {"class": found.__name__, "auto_class": auto_class}
    stock = _class_of_transformers(found)
    if stock is not None and _is_stock(type(model.config)):
        return {"class": stock.__name__}
    return {"class": found.__name__, "module": found.__module__ if importable and issubclass(found, PreTrainedModel) else ""}


def _class_of_transformers(model_class: type) -> type | None:
    """The class of transformers with the same weights: itself, or one that it is derived from without an `__init__`."""
    for each in model_class.__mro__:
        if _is_stock(each) and issubclass(each, PreTrainedModel):
            return None if each.__name__.endswith("PreTrainedModel") else each
        if "__init__" in vars(each):
            return None
    return None


def _is_stock(found: type) -> bool:
    return found.__module__.startswith("transformers.")


def names_of_its_class(config: Any) -> list[str]:
    """The names of the classes that a model was saved as, and the auto classes that load them by code of its own."""
    saved = config.architectures or []
    auto_map = getattr(config, "auto_map", None) or {}
    return [*saved, *(auto_class for auto_class, code in auto_map.items() if str(code).rpartition(".")[2] in saved)]
