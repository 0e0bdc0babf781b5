from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from markdown_it import MarkdownIt

import moopt
from moopt.report import tables, write_markdown


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="there is no chromium; Debian's is installed by: apt-get install chromium"
)
def test_the_markdown_shows_its_pictures_and_its_names_as_text(history: moopt.History, tmp_path: Path) -> None:
    path = write_markdown(history, tmp_path / "my report.md", ["shipping", "front", "hypervolume", "run"])
    shown = MarkdownIt("commonmark").enable("table").render(path.read_text())
    images = [unquote(found) for found in re.findall(r'<img src="([^"]+)"', shown)]
    assert images == ["my report-pictures/front.png", "my report-pictures/hypervolume.png"]
    assert {tmp_path / image for image in images} == set((tmp_path / "my report-pictures").iterdir())
    assert "<script" not in shown
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert re.findall("<h2>(.*)</h2>", shown) == ["What to ship", "The front", "Progress of the search", "What was run"]
    assert ">at most 15 MB</td>" in shown


def test_cells_are_what_they_say() -> None:
    odd = ["a|b", "[x](javascript:y)", "`c`", "two\nlines", "<b>", "_a_ size_mb", "*e*", "\\"]
    text = tables.markdown(pd.DataFrame({"n": range(len(odd)), "name": odd}))
    assert "size_mb" in text
    shown = MarkdownIt("commonmark").enable("table").render(text)
    cells = re.findall(r"<td[^>]*left[^>]*>([^<]*)</td>", shown)
    assert [cell.replace("&lt;", "<").replace("&gt;", ">") for cell in cells] == [c.replace("\n", " ") for c in odd]
