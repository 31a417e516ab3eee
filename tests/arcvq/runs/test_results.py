"""Check the notes on a model and on images that it was, or was not, trained on."""

import pytest
import yaml

from arcvq.runs.results import note_other_data
from tokenizer.data import DataConfig


@pytest.mark.parametrize(
    ("trained", "asked", "said"),
    [
        ({"name": "digits"}, {}, ""),  # of a run from before the option
        ({"name": "digits", "hold_out": 100}, {"hold_out": 50}, ""),  # a part of the same images
        ({"name": "digits", "hold_out": 100}, {}, ""),  # another split
        ({"name": "digits"}, {"hold_out": 50}, "with data.hold_out 0, so on images of the 50 that are held out here"),
        ({"name": "digits", "hold_out": 20}, {"hold_out": 50}, "with data.hold_out 20, so on images of the 50"),
        ({"name": "mnist"}, {}, "was trained on 'mnist'; data.name is 'digits'"),
    ],
)
def test_a_model_that_has_seen_the_held_out_images_is_noted(trained, asked, said, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": trained}))
    note_other_data(str(tmp_path / "tokenizer"), DataConfig(**asked))
    out = capsys.readouterr().out
    assert said in out and out.count("note: ") == bool(said)
