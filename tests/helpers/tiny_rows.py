"""Rows of the paper's tables with networks of a few hundred weights, on images of MNIST's size."""

import yaml
from images import write_mnist_size

from arcvq.paper import rows

UNMEASURED = ("--measure.extractor", "null", "--measure.lpips", "null", "--measure.dtype", "float32")
MODEL = {"codebook_size": 16, "codebook_dim": 4, "hidden_channels": 8, "network_options": {"residual_channels": 4}}


def make_rows_tiny(monkeypatch, folder, **options):
    """Writes images and the configs of the rows vq and arcvq into a folder, and makes tables take these.

    Args:
        options: sections or options of both configs.
    """
    write_mnist_size(folder / "images")
    (folder / "configs" / "mnist").mkdir(parents=True)
    for name in ("vq", "arcvq"):
        config = {"data": {"name": "mnist"}, "model": MODEL | {"quantizer": {"arcvq": "arc"}.get(name, name)}} | options
        (folder / "configs" / "mnist" / f"{name}.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(rows, "CONFIGS", folder / "configs")
    monkeypatch.setattr("arcvq.paper.command.CONFIGS", folder / "configs")
    monkeypatch.setattr("arcvq.compute.process.use_all_cores", lambda: None)
    monkeypatch.chdir(folder)


def table(*options, rows="[vq, arcvq]", steps=4, seeds="[0]"):
    """The command line of table 12 of these rows."""
    words = ["table_12", "--data", "mnist", "--images", "images", "--budget", f"{steps}steps"]
    return [*words, "--seeds", seeds, "--rows", rows, *UNMEASURED, *options]
