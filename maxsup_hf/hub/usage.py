"""The code of a model card, which loads the model and uses it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maxsup_hf.hub.example import CALLS, IMAGE, TEXT
from maxsup_hf.hub.values import as_list

PROCESSORS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
ADAPTERS = {
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
}
GENERATING = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
QUESTION = "What is a loss function?"
LISTED = 20  # class names that a snippet lists


def usage(found: Mapping[str, Any], folder: Path) -> str:
    """Code that loads the model and uses it: from the Hub if it was pushed, else from the folder, relative to its parent.
    Without a tokenizer or image processor beside the model, it only loads it. Empty if nothing can load it. A model of its
    own class is loaded by the auto class that finds its code, or by its class, if that can be imported."""
    where, note = found.get("repo_id"), ""
    if where is None:
        where, note = folder.name, "  # or the full path of the folder"
    model = found["model"]
    trust = ", trust_remote_code=True" if "auto_class" in model else ""
    if model.get("adapter"):
        return _adapter(found, folder, where, trust, note)
    model_class = model.get("auto_class", model["class"])
    if "module" in model:
        return _load(model["module"], model_class, where, "", note) if model["module"] else ""
    task = next(iter(as_list(found.get("tasks"))), None)
    if has_processor(found, folder) and model_class != "AutoModel":  # which no pipeline takes
        if task == "text-generation" and found.get("chat"):
            return CHAT.format(where=where, trust=trust, note=note, question=_quoted(QUESTION))
        if task in CALLS:
            return _pipeline(found, task, where, trust, note)
        if task in OTHERS:
            return OTHERS[task].format(model_class=model_class, where=where, trust=trust, note=note)
    return _load("transformers", model_class, where, trust, note)


def _load(module: str, model_class: str, where: str, options: str, note: str) -> str:
    return f'from {module} import {model_class}\n\nmodel = {model_class}.from_pretrained("{where}"{options}){note}'


def has_processor(found: Mapping[str, Any], folder: Path) -> bool:
    """Whether a tokenizer or an image processor was saved with the model. Records of version 0.1 do not say so; their
    scripts always saved one."""
    return found.get("processor", True) or any((folder / name).is_file() for name in PROCESSORS)


def _pipeline(found: Mapping[str, Any], task: str, where: str, trust: str, note: str) -> str:
    """A pipeline on the recorded example, with its answer as comments, or on an input that is made up for the task."""
    call, example = CALLS[task], found.get("example", {})
    imports, lines = ["from transformers import pipeline"], []
    given = "image"
    if call.text is None:
        before, opened = _image(found, where)
        imports, lines = [*before, *imports], [opened]
    else:
        given = _quoted(example.get("text", call.text))
    load = f'model = pipeline("{task}", model="{where}"{trust}){note}'
    output = [f"# {line}" for line in example.get("output", [])]
    return "\n".join([*imports, "", load, *lines, call.code.format(given=given), *output])


def _image(found: Mapping[str, Any], where: str) -> tuple[list[str], str]:
    """Imports, and the line that opens the example or makes an image."""
    imports = ["from PIL import Image"]
    if "example" not in found:
        return imports, 'image = Image.new("RGB", (224, 224), "white")  # or Image.open("your_image.jpg")'
    if found.get("repo_id") is None:
        return imports, f'image = Image.open("{where}/{IMAGE}")  # or an image of your own'
    imports.insert(0, "from huggingface_hub import hf_hub_download")
    return imports, f'image = Image.open(hf_hub_download("{where}", "{IMAGE}"))  # or an image of your own'


def _adapter(found: Mapping[str, Any], folder: Path, where: str, trust: str, note: str) -> str:
    model = found["model"]
    if not model["finetuned"] or "module" in model:
        return ""  # the base model had random weights and was not saved, or no auto class loads it
    task = model.get("adapter_task")
    model_class = ADAPTERS.get(task, "AutoPeftModel")
    classes = found.get("classes", [])
    options = f", num_labels={len(classes)}{trust}" if classes else trust
    load = _load("peft", model_class, where, options, note)
    if not has_processor(found, folder) or task not in (*GENERATING, "SEQ_CLS"):
        return load
    lines = [
        load.replace("\n\n", "\nfrom transformers import AutoTokenizer\n\n"),
        f'tokenizer = AutoTokenizer.from_pretrained("{where}"{trust})',
    ]
    if task in GENERATING:
        return "\n".join([*lines, *_generation(found)])
    lines.append(f'inputs = tokenizer({_quoted(TEXT)}, return_tensors="pt")')
    index = "model(**inputs).logits.argmax(-1).item()"
    if not 0 < len(classes) <= LISTED:
        return "\n".join([*lines, f"print({index})  # the index of the class"])
    return "\n".join([*lines, f"names = {json.dumps(classes, ensure_ascii=False)}", f"print(names[{index}])"])


def _generation(found: Mapping[str, Any]) -> list[str]:
    """Code that answers a message, or continues a text if the tokenizer has no chat template."""
    if found.get("chat"):
        message = f'[{{"role": "user", "content": {_quoted(QUESTION)}}}]'
        options = 'add_generation_prompt=True, return_dict=True, return_tensors="pt"'
        inputs = f"inputs = tokenizer.apply_chat_template({message}, {options})"
    else:
        inputs = f'inputs = tokenizer({_quoted(CALLS["text-generation"].text)}, return_tensors="pt")'
    output = "model.generate(**inputs, max_new_tokens=20)"
    return [inputs, f"print(tokenizer.decode({output}[0], skip_special_tokens=True))"]


def _quoted(text: str | None) -> str:
    """A Python string in double quotes."""
    return json.dumps(text, ensure_ascii=False)


CHAT = """\
from transformers import pipeline

model = pipeline("text-generation", model="{where}"{trust}){note}
messages = [{{"role": "user", "content": {question}}}]
print(model(messages, max_new_tokens=20)[0]["generated_text"][-1]["content"])"""

# Tasks whose models have no pipeline, and one whose input needs the tokenizer's mask.
OTHERS = {
    "fill-mask": """\
from transformers import pipeline

model = pipeline("fill-mask", model="{where}"{trust}){note}
print(model(f"Thank you, that was {{model.tokenizer.mask_token}}.")[0]["sequence"])""",
    "text2text-generation": """\
from transformers import AutoTokenizer, {model_class}

model = {model_class}.from_pretrained("{where}"{trust}){note}
tokenizer = AutoTokenizer.from_pretrained("{where}"{trust})
inputs = tokenizer("a text", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))""",
    "question-answering": """\
from transformers import AutoTokenizer, {model_class}

model = {model_class}.from_pretrained("{where}"{trust}){note}
tokenizer = AutoTokenizer.from_pretrained("{where}"{trust})
inputs = tokenizer("Where is the cat?", "The cat sleeps on the sofa.", return_tensors="pt")
output = model(**inputs)
start, end = output.start_logits.argmax(), output.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))""",
    "multiple-choice": """\
from transformers import AutoTokenizer, {model_class}

model = {model_class}.from_pretrained("{where}"{trust}){note}
tokenizer = AutoTokenizer.from_pretrained("{where}"{trust})
question, choices = "A cat is", ["an animal", "a colour"]
inputs = tokenizer([question] * len(choices), choices, padding=True, return_tensors="pt")
logits = model(**{{name: tensor[None] for name, tensor in inputs.items()}}).logits
print(choices[logits.argmax(-1).item()])""",
}
