"""The settings of a run folder, compared with those of the run that goes on in it."""

import pytest
import yaml

from arcvq.runs.options import RunConfig
from arcvq.runs.settings import check_settings

# The options of `run` that the first version had.
FIRST = {"name", "output_dir", "seed", "log_every", "sample_every", "checkpoint_every", "keep_checkpoints"} | {
    "mixed_precision", "compile", "gradient_checkpointing", "deterministic", "max_skipped_steps", "other_settings"
}  # fmt: skip


def folder_of(tmp_path, settings):
    (tmp_path / "tokenizer").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def test_a_run_from_before_an_option_goes_on_with_its_default(tmp_path):
    now = vars(RunConfig(name="run"))
    assert now.keys() >= FIRST
    file = folder_of(tmp_path, {"run": {name: now[name] for name in FIRST}})
    check_settings(file, {"run": now})
    with pytest.raises(ValueError, match=r"run\.cuda_graph was False and is now True"):
        check_settings(file, {"run": now | {"cuda_graph": True}})
