"""Links, pictures and lengths of the pages."""

import json
import re

import pytest
import yaml
from doc_pages import PAGES, anchors, links
from places import ROOT

DOCS = ROOT / "docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    for target in links(page):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


def test_a_reader_of_one_page_reads_one_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_picture_is_shown_and_every_result_linked():
    linked = {(page.parent / target.partition("#")[0]).resolve() for page in PAGES for target in links(page)}
    linked |= {file.with_suffix(".json") for file in linked if file.suffix == ".md"}  # a table and its numbers
    written = [file for file in DOCS.rglob("*") if file.suffix in (".json", ".png")]
    assert [str(file) for file in written if file not in linked] == []
    for file in written:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        """mkdocs' tags are values here."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: suffix)
    content = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)

    def pages_of(entry):
        if isinstance(entry, str):
            return {entry}
        return set().union(*map(pages_of, entry.values() if isinstance(entry, dict) else entry))

    there = {page.name for page in DOCS.glob("*.md")} | {"contributing.md", "changelog.md"}
    assert pages_of(content["nav"]) == there
