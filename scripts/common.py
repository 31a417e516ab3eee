"""What the training scripts share: the run folder, the randomness of a step, EMA, resuming.

    runs/<name>/config.yaml          the resolved configuration, as --config takes it
    runs/<name>/checkpoints/step-<n> what a resumed run needs
    runs/<name>/metrics.jsonl        numbers, each line with its step, and TensorBoard events beside it
    runs/<name>/samples/             pictures made during training
    runs/<name>/<artefact>/          the result, in diffusers' layout

The training loops themselves stay in their scripts.
"""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, InitProcessGroupKwargs
from average import Average
from checkpoints import checkpoints, load_checkpoint, save_checkpoint, step_of
from chunks import LONGEST_WAIT
from fast_training import Trained, on_device
from run_log import LoaderClock, Means, RunLog
from run_options import OptimConfig, RunConfig
from run_record import refuse_other_run
from seeds import seed_of
from threads import use_all_cores
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from tokenizer.data import training_batches

# In the place of a rank, where a seed is that of all processes.
_ALL_RANKS = 1 << 32


class Run:
    """One training run: its folder, its place in it, and what happens around each step.

    Args:
        config: where it writes, and how often.
        optim: how it trains.
        settings: all options of the script, nested, to be stored and compared.
        accelerator: brings the processes together; None: made here.

    Raises:
        ValueError: the folder holds checkpoints of a run with other settings; they are named.
    """

    def __init__(
        self,
        config: RunConfig,
        optim: OptimConfig,
        settings: dict[str, Any],
        accelerator: Accelerator | None = None,
    ):
        config.check()
        optim.check()
        self.config = config
        self.optim = optim
        self.folder = Path(config.output_dir) / config.name
        self.accelerator = accelerator or Accelerator(
            mixed_precision=config.mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)]
        )
        if self.accelerator.mixed_precision == "fp16" and self.accelerator.scaler is None:
            raise ValueError("run.mixed_precision fp16 needs a GPU, whose gradients it scales; set bf16, or no")
        settings["run"]["mixed_precision"] = self.accelerator.mixed_precision  # what None has turned out to be
        self.settings = settings
        optim.check_batch(self.accelerator.num_processes)
        refuse_other_run(self.folder / "config.yaml", settings)
        use_all_cores()
        torch.manual_seed(config.seed)
        self.step = 0
        self.average: Average | None = None
        self._trained: list[Trained] = []
        self._parts_done = 0  # of the step in progress
        self._means = Means()

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return self.accelerator.device

    @property
    def noise_seed(self) -> int:
        """Of noise that all processes draw alike in the present step."""
        return seed_of(self.config.seed, _ALL_RANKS, self.step)

    def prepare(
        self,
        model: nn.Module,
        dataset: Dataset,
        inputs: dict[str, str],
        num_workers: int = 0,
        ema_decay: float | None = None,
    ) -> nn.Module:
        """Opens the run folder, makes the optimiser, wraps the model for this machine, takes up the newest checkpoint.

        `dataset` is what `steps` goes through; until then `self.dataset` may be set to another form of it. `inputs` are
        the fingerprints of what the run is made from, which must be the same when it resumes; `ema_decay` adds
        `self.average`, that of the model's parameters.
        """
        self._batches = partial(
            training_batches,
            batch_size=self.optim.batch_size,
            seed=self.config.seed,
            stop_step=self.optim.max_steps,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            num_workers=num_workers,
        )
        self.dataset = dataset
        self._batches(
            dataset, start_step=0
        )  # a batch size that does not fit is an error now, before anything is written
        refuse_other_run(self.folder / "inputs.yaml", inputs)
        self.model = model
        self.main = self.train(model, "model")  # before anything is written, as it may refuse
        self.accelerator.wait_for_everyone()
        saved = checkpoints(self.folder)
        done = step_of(saved[-1]) if saved else 0
        if self.is_main and done >= self.optim.max_steps:
            print(f"{self.folder} has {done} steps already: nothing is left to train")
        elif self.is_main:
            (self.folder / "samples").mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(yaml.safe_dump(self.settings, sort_keys=False))
            (self.folder / "inputs.yaml").write_text(yaml.safe_dump(inputs))
            processes = self.accelerator.num_processes
            print(f"run folder: {self.folder}, {processes} process{'es' if processes > 1 else ''}")
            for trained in self._trained:
                print(f"{trained.name}: {sum(weight.numel() for weight in trained.module.parameters()):,} parameters")
        if ema_decay is not None:
            self.average = Average(model, ema_decay)
        self.step = self._resume()
        return self.main.wrapped

    def train(self, module: nn.Module, name: str) -> Trained:
        """A module that is trained beside the run's model; to be asked for before `prepare`, which loads its state."""
        self._trained.append(Trained(self.accelerator, module, name, self.optim, self.config))
        return self._trained[-1]

    def steps(self, whole: bool = False) -> Iterator[dict[str, Tensor]]:
        """The batches of the steps that remain, each on the device; seeds, logs and saves around every step.

        Each step has `optim.accumulation` batches, and `update` is to be called after each; or, if `whole`, one batch,
        whose parts are left to the caller, who calls `complete`.
        """
        total, parts = self.optim.max_steps, 1 if whole else self.optim.accumulation
        self._run_log = RunLog(self.folder, self.step) if self.is_main else None
        self._bar = tqdm(total=total, initial=self.step, desc=self.config.name, disable=not self.is_main)
        self._clock = LoaderClock()
        batches = self._batches(self.dataset, start_step=self.step)
        for batch in self._clock.timed(batches, self.optim.batch_size):
            # All randomness of a step is a function of (seed, rank, step), so a resumed run repeats it.
            torch.manual_seed(seed_of(self.config.seed, self.accelerator.process_index, self.step))
            for trained in self._trained:
                trained.begin(self.optim.learning_rate(self.step))
            batch = {name: on_device(tensor, self.device) for name, tensor in batch.items()}
            pieces = zip(*(tensor.chunk(parts) for tensor in batch.values()), strict=True)
            for index, piece in enumerate(pieces, start=1):
                with self.main.alone(index < parts):
                    yield dict(zip(batch, piece, strict=True))
            self._bar.update()
            if self.step % self.config.checkpoint_every == 0 or self.step == total:
                named = [pair for trained in self._trained for pair in trained.module.named_parameters()]
                self._refuse_broken([name for name, weight in named if not weight.isfinite().all()])
                averages = {} if self.average is None else self.average.state()
                save_checkpoint(self.accelerator, self.folder, self.step, averages, keep=self.config.keep_checkpoints)
        self._bar.close()
        if self._run_log is not None:
            self._run_log.close()

    def update(self, loss: Tensor) -> None:
        """The gradient of a batch of `steps`; with the last one of a step, the optimiser's step down their mean."""
        self.main.backward(loss / self.optim.accumulation)
        self._parts_done += 1
        if self._parts_done == self.optim.accumulation:
            self.complete(self.main.descend())

    def complete(self, updated: bool) -> None:
        """Ends the step. Where the model was not `updated`, its average stays as it is."""
        if updated and self.average is not None:
            self.average.update()
        for trained in self._trained:
            if updated and trained.gradient_norm is not None:
                self._means.add({f"gradient_norm_{trained.name}": trained.gradient_norm})
        if self.accelerator.scaler is not None:
            self._means.add({"skipped": torch.tensor(float(not updated), device=self.device)})
        self._parts_done = 0
        self.step += 1

    def due(self, interval: int) -> bool:
        """Whether a step has just been completed that ends an interval, or the run."""
        return self._parts_done == 0 and (self.step % interval == 0 or self.step == self.optim.max_steps)

    def log(self, **scalars: Tensor) -> None:
        """Adds scalars to their means; those over steps and processes are written every `log_every` steps."""
        self._means.add(scalars)
        if self.due(self.config.log_every):
            names, means = self._means.take()
            by_name = dict(zip(names, self.accelerator.reduce(means, "mean").tolist(), strict=True))
            self._refuse_broken([name for name, value in by_name.items() if not isfinite(value)])
            times = self._clock.take()
            self.write({**by_name, "lr": self.optim.learning_rate(self.step - 1), **times})
            shown = {name: f"{value:.3g}" for name, value in by_name.items()}
            self._bar.set_postfix(shown | {"loader": f"{times['loader_share']:.0%}"})

    def write(self, scalars: dict[str, float]) -> None:
        """Writes numbers of the completed step to the log, on the main process."""
        if self._run_log is not None:
            self._run_log.write(self.step, scalars)

    def picture(self, name: str) -> Path:
        """Where a picture of the completed step goes."""
        return self.folder / "samples" / f"{name}-{self.step:06d}.png"

    def export(self, name: str, save: Callable[[Path], None]) -> Path:
        """Writes the result folder `name` through `save(folder)` on the main process; whole, or not at all."""
        target = self.folder / name
        if self.is_main:
            unfinished = self.folder / f".{name}.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            save(unfinished)
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
        self.accelerator.wait_for_everyone()
        return target

    def _refuse_broken(self, names: list[str]) -> None:
        """Raises ValueError where there are names: those of numbers that are not finite."""
        if names:
            self._bar.close()  # so that the error stands below it
            raise ValueError(
                f"{names[0]} is not finite at step {self.step}; start again under another run.name with a lower "
                "optim.lr, or with optim.max_grad_norm (what was saved before is untouched)"
            )

    def _resume(self) -> int:
        """Loads the newest checkpoint, if there is one, and returns the number of completed steps."""
        saved = checkpoints(self.folder)
        step = 0
        if saved:
            step = step_of(saved[-1])
            averages = load_checkpoint(self.accelerator, saved[-1], averaged=self.average is not None)
            if self.average is not None:
                self.average.load_state(averages, step)
            if self.is_main:
                print(f"resuming from {saved[-1]}")
        return step
