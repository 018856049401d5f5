"""The static page: its arithmetic against the library's, its quoted results against the files, its looks and controls."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from maxsup_hf import create_loss, ls_decomposition
from tests.chromium import chromium, look, needs_chromium

SPACE = Path(__file__).parents[1] / "examples" / "space"
RESULTS = Path(__file__).parents[1] / "model_cards" / "results"
FILES = ["style.css", "arithmetic.js", "batch.js", "app.js"]
RUN = """
const answers = CASES.map(([z, label, alpha]) => [losses(z, label, alpha), decomposition(z, label, alpha)]);
const answered = { answers, terms: batchTerms(BATCH, 0.1), BATCH };
"""


def cases():
    generator = torch.Generator().manual_seed(0)
    drawn = [(3 * torch.randn(k, generator=generator, dtype=torch.float64)).tolist() for k in (2, 5, 5, 9)]
    return [(z, i % len(z), alpha) for i, (z, alpha) in enumerate(zip(drawn, (0.0, 0.1, 0.5, 0.2), strict=True))] + [
        ([1.0, 2.0, 2.0, 0.0], 2, 0.3)  # a tie for the top
    ]


def of_library(name, z, label, alpha):
    """Value and gradient of a loss for one row."""
    logits = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    value = create_loss(name, **({"alpha": alpha} if name != "cross_entropy" else {}))(logits, torch.tensor([label]))
    value.backward()
    return value.item(), logits.grad[0]


def check(answered):
    for (z, label, alpha), (found, parts) in zip(cases(), answered["answers"], strict=True):
        plain, plain_gradient = of_library("cross_entropy", z, label, alpha)
        for name in ("cross_entropy", "label_smoothing", "maxsup"):
            value, gradient = of_library(name, z, label, alpha)
            assert found[name]["value"] == pytest.approx(value, abs=1e-12)
            assert found[name]["gradient"] == pytest.approx(gradient.tolist(), abs=1e-12)
            assert found[name]["penalty"]["value"] == pytest.approx(value - plain, abs=1e-12)
            assert found[name]["penalty"]["gradient"] == pytest.approx((gradient - plain_gradient).tolist(), abs=1e-12)
        terms = ls_decomposition(torch.tensor([z], dtype=torch.float64), torch.tensor([label]), alpha)
        assert parts == pytest.approx({name: term.item() for name, term in terms._asdict().items()}, abs=1e-12)
    check_batch(answered["BATCH"], answered["terms"])


def check_batch(batch, terms):
    logits = torch.tensor([row["logits"] for row in batch], dtype=torch.float64)
    labels = torch.tensor([row["label"] for row in batch])
    right = logits.argmax(1) == labels
    assert len(batch) == 32 and (terms["right"]["rows"], terms["wrong"]["rows"]) == (int(right.sum()), int((~right).sum()))
    for name, rows in (("right", right), ("wrong", ~right), ("all", right | True)):
        z, y = logits[rows], labels[rows]
        plain = create_loss("cross_entropy")(z, y)
        expected = {key: value.item() for key, value in ls_decomposition(z, y, 0.1)._asdict().items()}
        expected |= {loss: (create_loss(loss, alpha=0.1)(z, y) - plain).item() for loss in ("label_smoothing", "maxsup")}
        assert terms[name] == pytest.approx(expected | {"rows": len(z)}, abs=1e-12)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js (`node` on PATH) to run arithmetic.js")
def test_arithmetic_in_node():
    script = f"const {{losses, decomposition, batchTerms}} = require({str(SPACE / 'arithmetic.js')!r});\n"
    script += f"const {{BATCH}} = require({str(SPACE / 'batch.js')!r});\nconst CASES = {json.dumps(cases())};"
    script += RUN + "console.log(JSON.stringify(answered));"
    check(json.loads(subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True).stdout))


# What a reader does, and what the page says then.
DRIVE = """
const shown = () => ({
  verdict: at("verdict").textContent,
  penalty: Object.fromEntries(["Label smoothing", "MaxSup"].map((name) => [name,
    [...document.querySelectorAll(`[aria-label="${name}"] tbody tr`)].map((row) => row.children[2].textContent)])),
  pressed: [...document.querySelectorAll("[aria-pressed=true]")].map((button) => button.textContent),
  values: [...document.querySelectorAll("#sliders input")].map((input) => +input.value),
});
const found = {};
const slide = (id, value) => { at(id).value = value; at(id).dispatchEvent(new Event("input")); };
const key = (name) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: name, cancelable: true }));
const tab = () => [document.activeElement.id, at("one-panel").hidden, at("batch-panel").hidden];
found.start = shown();
document.querySelectorAll("[data-preset]").forEach((button) => { button.click(); found[button.dataset.preset] = shown(); });
slide("alpha", 0.5); slide("z3", 4); at("label").value = 2; at("label").dispatchEvent(new Event("change"));
found.moved = shown();
at("reset").click(); found.reset = shown();
slide("alpha", 0); found.zero = shown(); at("reset").click();
at("one-tab").focus();
found.tabs = ["ArrowRight", "ArrowRight", "End", "Home", "ArrowLeft"].map((name) => { key(name); return tab(); });
found.batch = { verdict: at("batch-verdict").textContent, summary: at("summary").textContent,
  rows: at("batch-rows").children.length, first: at("batch-rows").children[0].textContent };
slide("batch-alpha", 0); found.batch.zero = at("batch-verdict").textContent;
"""


@needs_chromium
def test_the_page_in_chromium(tmp_path):
    folder = tmp_path / "space"
    shutil.copytree(SPACE, folder)
    driven = folder / "driven.html"
    script = f"<pre id=out></pre><script>\nconst CASES = {json.dumps(cases())};{RUN}{DRIVE}"
    script += "at('out').textContent = JSON.stringify({...answered, ...found});</script></body>"
    driven.write_text((SPACE / "index.html").read_text().replace("</body>", script))
    dumped = chromium("--dump-dom", "--allow-file-access-from-files", driven.as_uri(), profile=tmp_path / "profile").stdout
    found = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dumped, re.DOTALL)[1]))
    check(found)

    # the words, the bars of the penalty, and the presets say the same
    wrong = found["wrong"]
    assert "pushes the true logit, cat, down and the others up, the wrong dog among them" in wrong["verdict"]
    assert wrong["penalty"] == {
        "Label smoothing": ["0.080", "−0.020", "−0.020", "−0.020", "−0.020"],
        "MaxSup": ["−0.020", "0.080", "−0.020", "−0.020", "−0.020"],
    }
    assert "label smoothing by 0.768, cross-entropy alone by 0.848, and MaxSup by 0.868" in wrong["verdict"]
    for name in ("right", "uncertain"):
        assert "label smoothing and MaxSup are the same loss" in found[name]["verdict"]
        assert found[name]["penalty"]["Label smoothing"] == found[name]["penalty"]["MaxSup"]
    alone = "Cross-entropy alone pushes cat up by 0.153; with the penalty, the whole loss pushes cat up by 0.073"
    assert alone in found["right"]["verdict"]
    assert "probability of 24 %" in found["uncertain"]["verdict"]
    assert [found[name]["pressed"] for name in ("right", "wrong", "uncertain", "moved")] == [
        ["Right"],
        ["Wrong"],
        ["Uncertain"],
        [],
    ]
    assert "owl" in found["moved"]["verdict"] and found["moved"]["values"][3:] == [4, 0, 0.5]
    assert found["start"] == found["reset"] == wrong
    assert "the three losses are the same" in found["zero"]["verdict"]

    batch, one = ["batch-tab", True, False], ["one-tab", False, True]
    assert found["tabs"] == [batch, one, batch, one, batch]
    assert (
        "takes 3 % off label smoothing's penalty" in found["batch"]["verdict"] and "1.25 times" in found["batch"]["verdict"]
    )
    assert found["batch"]["rows"] == 32 and "5, read as 9−0.035" in found["batch"]["first"]
    assert "no penalty" in found["batch"]["zero"]


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits(width, tmp_path):
    folder = tmp_path / "space"
    shutil.copytree(SPACE, folder)
    seen = look(folder / "index.html", folder, width)
    assert seen.errors == [] and seen.width <= width and seen.smallest >= 13
    assert seen.picture.stat().st_size > 20_000


def test_colors_have_the_contrast_of_wcag_aa():
    light, dark = re.findall(r":root \{(.*?)\}", (SPACE / "style.css").read_text(), re.DOTALL)
    for scheme in (light, dark):
        color = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for name, least in (("ink", 4.5), ("quiet", 4.5), ("up", 4.5), ("down", 4.5), ("edge", 3)):
            assert contrast(color[name], color["paper"]) >= least, (name, color)


def contrast(one, other):
    """The ratio of WCAG 2.2."""

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def test_everything_is_in_the_folder_and_the_figures_are_those_of_the_results_file():
    page = (SPACE / "index.html").read_text()
    assert re.findall(r'(?:src|href)="(?!https://arxiv)([^"]+)"', page) == ["data:,", *FILES]
    shown = re.findall(
        r'<tr data-of="(\w+)"><td>[^<]+</td><td>([\w -]+)</td>((?:<td class="figure">[\d.]+ ± [\d.]+</td>)+)', page
    )
    assert len(shown) == page.count("<tr data-of=") == 9
    for data, loss, figures in shown:
        name = loss.replace("-", "_").replace(" ", "_").lower()
        found = json.loads((RESULTS / f"{data}.json").read_text())["tables"]["shared"]
        of = [found[metric]["summary"][name] for metric in ("accuracy", "nll", "ece", "confidence_when_wrong")]
        assert re.findall(r">([\d.]+ ± [\d.]+)<", figures) == [f"{x['mean']:.4f} ± {x['sd']:.4f}" for x in of]
