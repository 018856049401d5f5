"""The code of a model card, which loads the model and uses it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.pipelines import PIPELINE_REGISTRY

from maxsup_hf.hub.metadata import as_list

PROCESSORS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
EXAMPLE_IMAGE = "example.png"
TEXT = "Thank you, that was exactly what I was looking for."
# Input of the tasks whose pipeline takes one text or one image.
INPUTS = {
    "text-classification": TEXT,
    "token-classification": TEXT,
    "text-generation": "Once upon a time",
    "fill-mask": None,  # needs the mask of the tokenizer
    "image-classification": None,
    "image-segmentation": None,
}
ADAPTERS = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}
GENERATING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
LISTED = 20  # class names that a snippet lists


def usage(found: Mapping[str, Any], folder: Path) -> str:
    """Code that loads the model and uses it: from the Hub if it was pushed, else from the folder, relative to its parent.
    Without a tokenizer or image processor beside the model, it only loads it. Empty if nothing can load it."""
    where, note = found.get("repo_id"), ""
    if where is None:
        where, note = folder.name, "  # or the full path of the folder"
    if found["model"].get("adapter"):
        return _adapter(found, folder, where, note)
    task, model_class = next(iter(as_list(found.get("tasks"))), None), found["model"]["class"]
    if has_processor(found, folder):
        if task in INPUTS and task in PIPELINE_REGISTRY.get_supported_tasks():
            return _pipeline(found, folder, task, where, note)
        if task in OTHERS:
            return OTHERS[task].format(model_class=model_class, where=where, note=note)
    return f'from transformers import {model_class}\n\nmodel = {model_class}.from_pretrained("{where}"){note}'


def has_processor(found: Mapping[str, Any], folder: Path) -> bool:
    """Whether a tokenizer or an image processor was saved with the model. Records of version 0.1 do not say so; their
    scripts always saved one."""
    return found.get("processor", True) or any((folder / name).is_file() for name in PROCESSORS)


def _pipeline(found: Mapping[str, Any], folder: Path, task: str, where: str, note: str) -> str:
    """A pipeline on the recorded example, with its output, or on an input made up for the task."""
    example = found.get("example", {})
    imports, lines = ["from transformers import pipeline"], []
    if task.startswith("image"):
        imports.insert(0, "from PIL import Image")
        given, more = "image", _image(found, folder, where)
        imports[1:1] = more[:-1]
        lines.append(more[-1])
    elif task == "fill-mask":
        given = 'f"Thank you, that was {model.tokenizer.mask_token}."'
    else:
        given = repr(example.get("text", INPUTS[task]))
    options = {
        "text-generation": ", max_new_tokens=20",
        "text-classification": ", top_k=3",
        "image-classification": ", top_k=3",
    }
    load = f'model = pipeline("{task}", model="{where}"){note}'
    call = f"print(model({given}{options.get(task, '')}))"
    output = [f"# {line}" for line in example.get("output", [])]
    return "\n".join([*imports, "", load, *lines, call, *output])


def _image(found: Mapping[str, Any], folder: Path, where: str) -> list[str]:
    """Imports, and the line that opens the example or makes an image."""
    if "example" not in found:
        return ['image = Image.new("RGB", (224, 224), "white")  # or Image.open("your_image.jpg")']
    if found.get("repo_id") is None:
        return [f'image = Image.open("{where}/{EXAMPLE_IMAGE}")  # or an image of your own']
    return [
        "from huggingface_hub import hf_hub_download",
        f'image = Image.open(hf_hub_download("{where}", "{EXAMPLE_IMAGE}"))  # or an image of your own',
    ]


def _adapter(found: Mapping[str, Any], folder: Path, where: str, note: str) -> str:
    model = found["model"]
    if not model["finetuned"]:
        return ""  # the base model had random weights, and was not saved
    task = model.get("adapter_task")
    model_class = ADAPTERS.get(task, "AutoPeftModel")
    classes = found.get("classes", [])
    options = f", num_labels={len(classes)}" if classes else ""
    load = f'model = {model_class}.from_pretrained("{where}"{options}){note}'
    if not has_processor(found, folder) or task not in (*GENERATING, "SEQ_CLS"):
        return f"from peft import {model_class}\n\n{load}"
    imports = f"from peft import {model_class}\nfrom transformers import AutoTokenizer\n"
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{where}")'
    text = repr(found.get("example", {}).get("text", INPUTS["text-generation"] if task in GENERATING else TEXT))
    inputs = f'inputs = tokenizer({text}, return_tensors="pt")'
    if task in GENERATING:
        output = "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0], skip_special_tokens=True))"
        return "\n".join([imports, load, tokenizer, inputs, output])
    names = f"names = {classes!r}\n" if len(classes) <= LISTED else ""
    index = "model(**inputs).logits.argmax(-1).item()"
    output = f"{names}print(names[{index}])" if names else f"print({index})  # the index of the class"
    return "\n".join([imports, load, tokenizer, inputs, output])


# Tasks whose models have no pipeline.
OTHERS = {
    "text2text-generation": """\
from transformers import AutoTokenizer, {model_class}

model = {model_class}.from_pretrained("{where}"){note}
tokenizer = AutoTokenizer.from_pretrained("{where}")
inputs = tokenizer("a text", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))""",
    "question-answering": """\
from transformers import AutoTokenizer, {model_class}

model = {model_class}.from_pretrained("{where}"){note}
tokenizer = AutoTokenizer.from_pretrained("{where}")
inputs = tokenizer("Where is the cat?", "The cat sleeps on the sofa.", return_tensors="pt")
output = model(**inputs)
start, end = output.start_logits.argmax(), output.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))""",
    "multiple-choice": """\
from transformers import AutoTokenizer, {model_class}

model = {model_class}.from_pretrained("{where}"){note}
tokenizer = AutoTokenizer.from_pretrained("{where}")
question, choices = "A cat is", ["an animal", "a colour"]
inputs = tokenizer([question] * len(choices), choices, padding=True, return_tensors="pt")
logits = model(**{{name: tensor[None] for name, tensor in inputs.items()}}).logits
print(choices[logits.argmax(-1).item()])""",
}
