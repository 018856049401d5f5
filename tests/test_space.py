"""The static page: its arithmetic against the library's, its quoted results against the JSON files, and its layout."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from maxsup_hf import create_loss, ls_decomposition
from tests.chromium import chromium, needs_chromium

SPACE = Path(__file__).parents[1] / "examples" / "space"
RESULTS = Path(__file__).parents[1] / "model_cards" / "results"
RUN = """
const answers = CASES.map(([z, label, alpha]) => [losses(z, label, alpha), decomposition(z, label, alpha)]);
"""


def cases():
    generator = torch.Generator().manual_seed(0)
    drawn = [(3 * torch.randn(k, generator=generator, dtype=torch.float64)).tolist() for k in (2, 5, 5, 9)]
    return [(z, i % len(z), alpha) for i, (z, alpha) in enumerate(zip(drawn, (0.0, 0.1, 0.5, 0.2), strict=True))] + [
        ([1.0, 2.0, 2.0, 0.0], 2, 0.3)  # a tie for the top
    ]


def check(answers):
    for (z, label, alpha), (found, parts) in zip(cases(), answers, strict=True):
        for name in ("cross_entropy", "label_smoothing", "maxsup"):
            logits = torch.tensor([z], dtype=torch.float64, requires_grad=True)
            strength = {"alpha": alpha} if name != "cross_entropy" else {}
            value = create_loss(name, **strength)(logits, torch.tensor([label]))
            value.backward()
            assert found[name]["value"] == pytest.approx(value.item(), abs=1e-12)
            assert found[name]["gradient"] == pytest.approx(logits.grad[0].tolist(), abs=1e-12)
        terms = ls_decomposition(logits.detach(), torch.tensor([label]), alpha)
        assert parts == pytest.approx({name: term.item() for name, term in terms._asdict().items()}, abs=1e-12)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js (`node` on PATH) to run app.js")
def test_arithmetic_in_node():
    script = f"const {{losses, decomposition}} = require({str(SPACE / 'app.js')!r});\nconst CASES = {json.dumps(cases())};"
    script += RUN + "console.log(JSON.stringify(answers));"
    check(json.loads(subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True).stdout))


@needs_chromium
def test_arithmetic_in_chromium(tmp_path):
    page = tmp_path / "page.html"
    source = (SPACE / "app.js").read_text()
    page.write_text(
        f"<meta charset=utf-8><pre id=out></pre><script>{source}\nconst CASES = {json.dumps(cases())};{RUN}"
        "document.getElementById('out').textContent = JSON.stringify(answers);</script>"
    )
    shown = chromium("--dump-dom", page.as_uri(), profile=tmp_path / "profile").stdout
    check(json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', shown, re.DOTALL)[1])))


@needs_chromium
def test_the_page_draws_itself_and_fits_a_phone(tmp_path):
    probe = (
        "<script>addEventListener('error', (e) => document.title = 'error: ' + e.message);"
        "addEventListener('load', () => document.body.dataset.width = document.documentElement.scrollWidth);</script>"
    )
    folder = tmp_path / "space"
    shutil.copytree(SPACE, folder)
    page = folder / "index.html"
    page.write_text(page.read_text().replace("<head>", "<head>" + probe, 1))
    for width in (390, 1280):
        # a headless window is at least about 500 pixels wide, so the page is shown in a frame
        frame = folder / f"frame{width}.html"
        frame.write_text(f'<body style="margin:0"><iframe src="index.html" style="border:0;width:{width}px;height:2400px">')
        picture = tmp_path / f"{width}.png"
        shot = chromium(
            f"--screenshot={picture}", f"--window-size={max(width, 600)},2400", "--allow-file-access-from-files",
            frame.as_uri(), profile=tmp_path / f"p{width}",
        )  # fmt: skip
        assert picture.stat().st_size > 20_000, shot.stderr[-2000:]
    shown = chromium("--dump-dom", "--window-size=600,1200", page.as_uri(), profile=tmp_path / "p").stdout
    assert "error:" not in re.search(r"<title>(.*?)</title>", shown)[1]
    assert shown.count('class="bar') == 15 and "is wrong: label smoothing pulls" in shown
    assert int(re.search(r'data-width="(\d+)"', shown)[1]) <= 600


def test_everything_is_in_the_folder_and_the_figures_are_those_of_the_results_file():
    page = (SPACE / "index.html").read_text()
    assert re.findall(r'(?:src|href)="(?!https://arxiv)([^"]+)"', page) == ["data:,", "style.css", "app.js"]
    shown = re.findall(r'<td>(\w+)</td><td>([\w -]+)</td>((?:<td class="figure">[\d.]+ ± [\d.]+</td>)+)', page)
    assert len(shown) == page.count("<tr><td>") == 9
    for data, loss, figures in shown:
        name = loss.replace("-", "_").replace(" ", "_").lower()
        found = json.loads((RESULTS / f"{data}.json").read_text())["tables"]["shared"]
        of = [found[metric]["summary"][name] for metric in ("accuracy", "nll", "ece")]
        assert re.findall(r">([\d.]+ ± [\d.]+)<", figures) == [f"{x['mean']:.4f} ± {x['sd']:.4f}" for x in of]
