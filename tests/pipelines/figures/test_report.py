"""The report holds everything it shows, and survives a failed successor."""

import base64
import io
import re

import pytest
import torch
from images import noise, pixels
from PIL import Image, UnidentifiedImageError

from pipelines.figures import report
from pipelines.figures.grids import image_grid
from pipelines.figures.report import Picture, Section, write_report


def test_the_report_holds_all_it_shows(tmp_path):
    Image.fromarray(noise(1, 1)[0, 0].numpy()).save(tmp_path / "grey.png")
    grid = image_grid(noise(4), 2)
    sections = [
        Section("First", pictures=(Picture(grid, "small", pixelated=True), Picture(tmp_path / "grey.png"))),
        Section("Second", text="one\n\ntwo", commands=("python a.py", "python b.py")),
        Section("Third", numbers={"psnr": 23.456789, "images": 10_000, "n": 12345.6, "protocol": "uniform"}),
    ]
    write_report(tmp_path / "report.html", "A report", sections)
    (tmp_path / "grey.png").unlink()
    page = (tmp_path / "report.html").read_text()
    sources = re.findall(r'\bsrc="([^"]*)"', page)
    assert len(sources) == page.count("<img") == 2
    data = [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]
    decoded = [pixels(io.BytesIO(png)) for png in data]
    assert torch.equal(decoded[0], pixels(grid)) and torch.equal(decoded[1], noise(1, 1)[0])
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert re.search(r"<img[^>]*pixelated", page).start() < page.index("small")
    assert page.count("<p>") == 2 and "python a.py\npython b.py" in page
    for value in ("23.46", "10,000", "12,346", "uniform"):
        assert f"<td>{value}</td>" in page
    assert str(tmp_path) not in page


def test_pixelated_pictures_are_enlarged_by_a_whole_factor(tmp_path):
    widths = {}
    for width in (4, 40, 527, 5000):
        image = Image.new("L", (width, 2))
        write_report(tmp_path / "report.html", "x", [Section("x", pictures=(Picture(image, pixelated=True),))])
        widths[width] = int(re.search(r'width="(\d+)"', (tmp_path / "report.html").read_text())[1])
    assert widths == {4: 32, 40: 320, 527: 1054, 5000: 5000}


def test_all_text_is_escaped(tmp_path):
    evil = '"><script>alert(1)</script>&'
    picture = Picture(Image.new("L", (2, 2)), evil)
    section = Section(evil, evil, (picture,), {evil: evil}, (evil,))
    write_report(tmp_path / "report.html", evil, [section])
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and evil not in page
    # Twice the title and the section's; its text; name and value; caption and alt; the command.
    assert page.count("&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;&amp;") == 10


def test_a_failure_leaves_the_earlier_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(path, "earlier", [])
    earlier = path.read_bytes()
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        write_report(path, "later", [Section("x", pictures=(Picture(tmp_path / "missing.png"),))])
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(UnidentifiedImageError, match=r"broken\.png"):
        write_report(path, "later", [Section("x", pictures=(Picture(tmp_path / "broken.png"),))])
    (tmp_path / "broken.png").unlink()

    def disk_full(self, *args, **kwargs):
        self.write_bytes(b"<!DOC")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(report.Path, "write_text", disk_full)
        with pytest.raises(OSError, match="no space left"):
            write_report(path, "later", [])
    assert path.read_bytes() == earlier
    assert list(tmp_path.iterdir()) == [path]
    with path.open("rb") as reader:  # who reads the earlier report goes on to its end
        write_report(path, "later", [])
        assert reader.read() == earlier
    assert "later" in path.read_text() and list(tmp_path.iterdir()) == [path]
