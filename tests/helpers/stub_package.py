"""A package `arcvq` that is a few lines, for processes that need not import what the real one does."""


def write_stub(folder, code):
    """Writes a package whose `python -m arcvq` runs `code`."""
    (folder / "arcvq").mkdir(parents=True)
    (folder / "arcvq" / "__init__.py").write_text("")
    (folder / "arcvq" / "__main__.py").write_text(code)
