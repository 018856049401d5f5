"""A headless Chromium that looks at pages."""

import html
import json
import re
import shutil
import subprocess
from typing import NamedTuple

import pytest

from tests import HANGS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on PATH (Debian: apt-get install chromium)")
PROBE = """<script>
const errors = [];
addEventListener('error', (e) => errors.push(e.message || 'not loaded: ' + (e.target.src || e.target.href)), true);
const broken = () => [...document.querySelectorAll('thead th')].flatMap((th) => {
  const found = [], texts = document.createTreeWalker(th, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) for (const word of texts.currentNode.data.matchAll(/[^\\s-]+/g)) {
    const range = document.createRange();
    range.setStart(texts.currentNode, word.index);
    range.setEnd(texts.currentNode, word.index + word[0].length);
    if (range.getClientRects().length > 1) found.push(word[0]);
  }
  return found;
});
addEventListener('load', () => parent.postMessage({
  errors,
  width: document.documentElement.scrollWidth,
  height: document.documentElement.scrollHeight,
  smallest: Math.min(...[...document.querySelectorAll('p, td, th, figcaption, li')]
    .map((e) => parseFloat(getComputedStyle(e).fontSize))),
  broken: broken(),
  images: [...document.images].map((i) => [i.alt, i.complete ? i.naturalWidth : 0, i.getBoundingClientRect().width]),
}, '*'));
</script>"""


class Seen(NamedTuple):
    """A page as it came out: `errors` of its scripts and of what it loads, and what the browser wrote to its console;
    `width` and `height` that it takes; `smallest` letters, in pixels; words in heads of tables that are `broken` over two
    lines; `images`, (alt, natural width, width on the page); `picture`, a file."""

    errors: list
    width: int
    height: int
    smallest: float
    broken: list
    images: list
    picture: object


def chromium(*flags, profile):
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={profile}"]
    command += [*(f"--disable-{name}" for name in quiet), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANGS)


def look(page, folder, width, height=2400):
    """Open a file in a frame of so many pixels: headless windows are never narrower than about 500."""
    folder.mkdir(exist_ok=True)
    probed = folder / f"page{width}.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("<head>", "<head>" + PROBE, 1), encoding="utf-8")
    frame = folder / f"frame{width}.html"
    frame.write_text(
        "<!DOCTYPE html><meta charset=utf-8><body style='margin:0'><script>addEventListener('message', (e) => "
        "document.getElementById('seen').textContent = JSON.stringify(e.data))</script><pre id=seen hidden></pre>"
        f"<iframe src='{probed.name}' style='border:0;width:{width}px;height:{height}px'></iframe>"
    )
    picture = folder / f"{width}.png"
    shown = chromium(
        f"--screenshot={picture}", "--dump-dom", f"--window-size={max(width, 600)},{height}", "--enable-logging=stderr",
        "--allow-file-access-from-files", frame.as_uri(), profile=folder / f"profile{width}",
    )  # fmt: skip
    said = re.search(r'<pre id="seen"[^>]*>(.*?)</pre>', shown.stdout, re.DOTALL)
    assert said and said[1], shown.stderr[-2000:]
    found = json.loads(html.unescape(said[1]))
    console = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    return Seen(**found | {"errors": found["errors"] + console}, picture=picture)
