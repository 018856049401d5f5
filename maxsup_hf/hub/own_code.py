"""Models whose class is not one of transformers: what loads them, and what they are for."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel


def base_model(model: Any) -> Any:
    """The model that an adapter was added to, by PEFT or by `add_adapter`; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def model_class(model: Any) -> type:
    """The class that a model was made from; FSDP2 replaces it by one that it derives."""
    return next(each for each in type(model).__mro__ if not each.__module__.startswith("torch.distributed."))


def how_to_load(model: Any) -> dict[str, str]:
    """What loads a saved model, if its class is not one of transformers.

    Returns:
        `auto_class`, the class of transformers that loads it by the code that is saved beside its weights; else `module`,
        from which its class can be imported, empty where that is of no help. Neither for a class of transformers.
    """
    found = model_class(model)
    if found.__module__.startswith("transformers."):
        return {}
    importable = found.__module__ != "__main__"
    auto_class = getattr(found, "_auto_class", None)
    if auto_class is not None and importable:  # transformers saves no code of `__main__`
        return {"auto_class": auto_class}
    return {"module": found.__module__ if importable and issubclass(found, PreTrainedModel) else ""}


def names_of_its_class(config: Any) -> list[str]:
    """The names of the classes that a model was saved as, and the auto classes that load them by code of its own."""
    saved = config.architectures or []
    auto_map = getattr(config, "auto_map", None) or {}
    return [*saved, *(auto_class for auto_class, code in auto_map.items() if str(code).rpartition(".")[2] in saved)]
