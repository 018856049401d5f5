"""Building the model of a run: pretrained, from a config, or the task's tiny default."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, set_seed

from maxsup_hf.data.files import loading
from maxsup_hf.hub.record import why_no_weights
from maxsup_hf.output.messages import listed
from maxsup_hf.scripts.common.arguments import ScriptArguments


def hub_options(args: Any) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` for a model, its tokenizer and its image processor."""
    return {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}


def weights_dtype(name: str) -> Any:
    """A type of torch for the weights of a model, or `auto`.

    Raises:
        ValueError: it is not a type of real numbers.
    """
    found = getattr(torch, name, None)
    if name == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found or name
    raise ValueError(f"dtype must be auto, or a type of torch such as float32 or bfloat16, got {name!r}")


def load_config(args: ScriptArguments) -> PretrainedConfig | None:
    """The config of `--model_name_or_path` or `--config_name`; `None` if neither is given.

    Raises:
        ValueError: it cannot be loaded.
    """
    for argument in ("model_name_or_path", "config_name"):
        source = getattr(args, argument)
        if source:
            if source.startswith((".", "/", "~")) and not os.path.exists(source):
                raise ValueError(f"{argument}: there is no folder {source!r}; expected a folder or a Hub id")
            reason = why_no_weights(source)
            if argument == "model_name_or_path" and reason:
                raise ValueError(f"{argument}: {source!r}: {reason}")
            if os.path.isfile(f"{source}/adapter_config.json") and not os.path.isfile(f"{source}/config.json"):
                raise ValueError(
                    f"{argument}: {source!r} is an adapter, not a complete model: merge it into its base model first; "
                    "`maxsup-hf predict` takes adapters as they are"
                )
            with loading(argument, source):
                stored, _ = PretrainedConfig.get_config_dict(source, **hub_options(args))
                if stored.get("model_type") == "timm_wrapper":
                    _check_timm()
                return AutoConfig.from_pretrained(source, **hub_options(args))
    return None


def _check_timm() -> None:
    """Raise ValueError if timm's models cannot be built here; transformers would say that timm is not installed."""
    for package in ("torchvision", "timm"):
        try:
            import_module(package)
        except Exception as error:  # a torchvision that was built for another torch raises a RuntimeError
            raise ValueError(
                f"timm models need timm and torchvision, and {package} cannot be imported ({error}): "
                "pip install timm torchvision, in the version of torchvision that belongs to the installed torch"
            ) from None


def set_classes(config: PretrainedConfig, names: Sequence[str]) -> PretrainedConfig:
    """Set the classes of a classifier's config, in place, and return it."""
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    if hasattr(config, "label_names"):  # which timm's config is saved with
        config.label_names = list(names)
    config.problem_type = "single_label_classification"
    return config


def build_model(auto_class: Any, config: PretrainedConfig, args: ScriptArguments, seed: int, **options: Any) -> Any:
    """A model with the weights of `--model_name_or_path`, or random ones.

    A head with another number of classes starts from random weights, which is an error if nothing is trained. Weights are
    loaded as `--dtype` (float32 by default) and not as the type that they are stored in, so that nobody trains in float16
    or bfloat16 unawares.

    Args:
        **options: of `from_pretrained`, such as `quantization_config`.

    Raises:
        ValueError: the architecture does not support the task, or the weights cannot be loaded.
    """
    set_seed(seed)
    source, dtype = args.model_name_or_path, weights_dtype(args.dtype)
    with loading("model_name_or_path" if source else "config_name", source or args.config_name):
        if source:
            model, found = auto_class.from_pretrained(
                source, config=config, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True,
                **hub_options(args), **options,
            )  # fmt: skip
            if not args.needs_training_data:
                check_complete(found)
        else:
            model = auto_class.from_config(config, trust_remote_code=args.trust_remote_code, dtype=dtype)
            # or the card would call the model fine-tuned from its config
            model.name_or_path = model.config.name_or_path = ""
    if args.freeze_backbone:
        _freeze_backbone(model)
    return model


def check_complete(found: Mapping[str, Any]) -> None:
    """Check that no weights are random: without training, they predict nothing.

    Args:
        found: what `from_pretrained` returns with `output_loading_info`.

    Raises:
        ValueError: names the weights that are missing or of another size.
    """
    lacking = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if lacking:
        raise ValueError(
            f"it has no trained weights for this task and these classes: {listed(lacking)}; name a model that has them, or "
            "train it first"
        )


def _freeze_backbone(model: Any) -> None:
    """Leave only the parameters outside of the base model to train.

    Raises:
        ValueError: there are none, as in a language model whose head is its input embedding.
    """
    backbone = model.base_model
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    if hasattr(backbone, "get_classifier"):  # of timm, whose networks hold their head
        for parameter in backbone.get_classifier().parameters():
            parameter.requires_grad_(True)
    if backbone is model or not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"freeze_backbone: {type(model).__name__} has no head of its own to train; leave freeze_backbone out"
        )
