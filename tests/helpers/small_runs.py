"""Scripts on the embedded digits with networks of a few hundred weights."""

import subprocess
import sys
from pathlib import Path

from places import ROOT

from arcvq.faults import forked_process

ACCELERATE = [str(Path(sys.executable).with_name("accelerate")), "launch"]
# Without --multi_gpu the launcher starts one process where there is no GPU, whatever --num_processes says.
TWO_PROCESSES = [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
SMALL = {
    "tokenizer": ["--model.codebook_size", "16", "--model.codebook_dim", "4", "--model.hidden_channels", "8"],
    "ldm": ["--unet.channels", "16", "--unet.head_channels", "16", "--diffusion.prediction_type", "epsilon"],
    "pixelcnn": ["--prior.channels", "8", "--prior.num_layers", "3", "--prior.head_channels", "16"],
}
ARTEFACT = {
    "tokenizer": "tokenizer/diffusion_pytorch_model.safetensors",
    "ldm": "pipeline/unet/diffusion_pytorch_model.safetensors",
    "pixelcnn": "pipeline/prior/diffusion_pytorch_model.safetensors",
}


def command(script, *options, launcher=(sys.executable,)):
    return [*launcher, str(ROOT / "scripts" / f"{script}.py"), *map(str, options)]


def run(*args, cwd, check=True, **kwargs):
    """Runs a script in `cwd` and returns the finished process; its output is shown where it fails."""
    if "launcher" in kwargs:
        done = subprocess.run(command(*args, **kwargs), cwd=cwd, capture_output=True, text=True, timeout=300)
    else:
        done = forked_process.run(command(*args), cwd, **kwargs)
    assert done.returncode == 0 or not check, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def training(stage, folder, steps, *options):
    """The arguments that train a small model of a stage into `folder`."""
    shared = ["--optim.max_steps", steps, "--optim.batch_size", 16, "--run.output_dir", folder, "--run.log_every", 1]
    stage_one = [] if stage == "tokenizer" else ["--tokenizer", "runs/tokenizer"]
    return f"train_{stage}", *SMALL[stage], *stage_one, *shared, "--run.sample_every", steps, *options
