"""One file that holds everything, and runs nothing of what is written into it."""

import base64
import re
from html.parser import HTMLParser

import pytest

from maxsup_hf.analysis.report import PACKAGES, Picture, Section, write_report
from maxsup_hf.output.tables import Table
from maxsup_hf.output.versions import versions

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="2" height="1"/>'


class Page(HTMLParser):
    """What a browser would load, and the text that it would show."""

    def __init__(self, path):
        super().__init__()
        self.loaded, self.text, self.tags, self.alts = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href")]
        self.alts += [given["alt"]] if "alt" in given else []

    def handle_data(self, data):
        self.text.append(data)


def test_everything_is_inside(tmp_path):
    (tmp_path / "a.svg").write_text(SVG)
    (tmp_path / "b.png").write_bytes(b"png")
    pictures = [Picture(tmp_path / "a.svg", "first"), Picture(tmp_path / "b.png", "second", alt="what it shows")]
    table = Table(["", "one", "two"], [["accuracy", "0.5", "0.6"]], "which is better", bold=[(0, 2)])
    path = write_report(tmp_path / "r.html", "Title", [Section("Part", ["some text"], [table], pictures, {"log": "lines"})],
                        summary=["in short"], notes=["mind this"])  # fmt: skip
    page = Page(path)
    assert page.loaded[0] == "data:,"  # the icon, which browsers ask for otherwise
    kinds = [link.partition(",") for link in page.loaded[1:]]
    assert [kind for kind, _, _ in kinds] == ["data:image/svg+xml;base64", "data:image/png;base64"]
    assert [base64.b64decode(data) for _, _, data in kinds] == [SVG.encode(), b"png"]
    assert page.alts == ["first", "what it shows"]
    text = " ".join(" ".join(page.text).split())
    for part in ("Title", "in short", "mind this", "some text", "which is better", "accuracy 0.5 0.6", "lines", "Made with"):
        assert part in text
    assert "<strong>0.6</strong>" in path.read_text() and not {"script", "link_stylesheet"} & set(page.tags)
    assert all(f"{name} {v}" in text for name, v in versions(*PACKAGES).items()) and "torch" in versions()


def test_text_is_text(tmp_path):
    evil = "<script>alert(1)</script> & \"quoted\" 'too'"
    (tmp_path / "a.svg").write_text(SVG)
    section = Section(
        evil, [evil], [Table([evil, evil], [[evil, evil]], evil)], [Picture(tmp_path / "a.svg", evil)], {evil: evil}
    )
    page = Page(write_report(tmp_path / "r.html", evil, [section], summary=[evil], notes=[evil], footer=[evil]))
    assert "script" not in page.tags and page.alts == [evil]
    assert "".join(page.text).count(evil) >= 11


def test_underscores_may_break(tmp_path):
    path = write_report(tmp_path / "r.html", "t", [Section("s", tables=[Table(["", "label_smoothing"], [["a", "b_<c"]])])])
    assert "label_<wbr>smoothing" in path.read_text() and "b_<wbr>&lt;c" in path.read_text()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (Section("s", tables=[Table(["", "a"], [["x", "1"], ["y"]], "numbers")]), "'numbers': every row needs 2 cells"),
        (Section("s", figures=[Picture("a.gif", "c")]), "pictures must be .svg or .png, got 'a.gif'"),
    ],
)
def test_refused(section, message, tmp_path):
    if section.figures:
        section = Section("s", figures=[Picture(tmp_path / "a.gif", "c")])
    with pytest.raises(ValueError, match=re.escape(message)):
        write_report(tmp_path / "r.html", "t", [section])
    assert not (tmp_path / "r.html").exists()
