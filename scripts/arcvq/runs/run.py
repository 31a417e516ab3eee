"""Run a training: the run folder, the randomness of a step, EMA, resuming.

    runs/<name>/config.yaml          the resolved configuration, as --config takes it
    runs/<name>/data.txt             what the data set was found to be
    runs/<name>/checkpoints/step-<n> what a resumed run needs
    runs/<name>/metrics.jsonl        numbers, each line with its step, and TensorBoard events beside it
    runs/<name>/samples/             pictures made during training
    runs/<name>/<artefact>/          the result, in diffusers' layout

The training loops themselves stay in their scripts.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.utils.data import Dataset

from arcvq.checkpoints.checkpoint import RunState, load_checkpoint, note_processes
from arcvq.checkpoints.manifest import Progress, step_of
from arcvq.compute.resumable import LONGEST_WAIT
from arcvq.compute.threads import use_all_cores
from arcvq.runs.changed_parts import ChangedParts
from arcvq.runs.ema import Average
from arcvq.runs.folder import RunFolder
from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.progress import RunReport
from arcvq.runs.seeds import be_deterministic, seed_of
from arcvq.runs.settings import read_settings
from arcvq.runs.signals import Stopping
from arcvq.runs.skipped_images import SkippedImages
from arcvq.runs.skipped_steps import SkippedSteps
from arcvq.runs.trained_module import TrainableModule, first_broken, on_device
from tokenizer.data import training_batches

# In the place of a rank, where a seed is that of all processes.
_ALL_RANKS = 1 << 32


def _began(name: str) -> str:
    """Name the buffer that counts the steps before a module joined."""
    return f"{name}_began"


class Run:
    """One training run: its folder, its place in it, and what happens around each step.

    Args:
        config: where it writes, and how often.
        optim: how it trains.
        settings: all options of the script, nested, to be stored and compared.
        accelerator: brings the processes together; None: made here.

    Attributes:
        counts: what the script counts and a resumed run goes on counting, by name.
        data: the line that says what the data set was found to be, to be kept in the folder.
        was: the settings that the folder's run has had so far, nested; empty where there was none.

    Raises:
        ValueError: the folder holds checkpoints of a run with other settings, which are named; or another process is
            at work in it.
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
        if config.deterministic:
            be_deterministic()
        self.config = config
        self.optim = optim
        self.accelerator = accelerator or Accelerator(
            mixed_precision=config.mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)]
        )
        if self.accelerator.mixed_precision == "fp16" and self.accelerator.scaler is None:
            raise ValueError("run.mixed_precision fp16 needs a GPU, whose gradients it scales; set bf16, or no")
        settings["run"]["mixed_precision"] = self.accelerator.mixed_precision  # what None has turned out to be
        self.settings = settings
        optim.check_batch(self.accelerator.num_processes)
        self._files = self._open_files()
        self._files.check_settings("config.yaml", settings)
        use_all_cores()
        torch.manual_seed(config.seed)
        self.step = 0
        self.counts: dict[str, int] = {}
        self.data = ""
        self.was: dict[str, Any] = {}
        self.average: Average | None = None
        self._trained: list[TrainableModule] = []
        self._parts_done = 0  # of the step in progress
        self._loss_done: Tensor | None = None  # of these parts
        self._report = RunReport(self.accelerator)
        self._bad_before: list[int] = []  # images that were skipped before this start
        self._skipped = SkippedSteps(self.accelerator)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._files.path

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
        # A batch size that does not fit is an error now, before anything is written.
        self._batches(dataset, start_step=0)
        self._files.check_settings("inputs.yaml", inputs)
        self.model = model
        self.main = self.add_module(model, "model")  # before anything is written, as it may refuse
        newest = self._files.open(self.settings, inputs)
        done = step_of(newest) if newest else 0
        if self.is_main and done >= self.optim.max_steps:
            print(f"{self.folder} has {done} steps already: nothing is left to train")
        elif self.is_main:
            processes = self.accelerator.num_processes
            print(f"run folder: {self.folder}, {processes} process{'es' if processes > 1 else ''}")
            for trained in self._trained:
                print(f"{trained.name}: {sum(weight.numel() for weight in trained.module.parameters()):,} parameters")
        if ema_decay is not None:
            self.average = Average(model, ema_decay)
        if newest is not None:
            self.was = read_settings(self.folder / "config.yaml")
            before = read_settings(self.folder / "inputs.yaml").get("data")
            self._resume(newest, of_other_data=before is not None and before != inputs.get("data"))
        if self.is_main and done < self.optim.max_steps:  # when it is known that it can go on
            self._files.write_config(self.settings, inputs, self.data)
        return self.main.wrapped

    def add_module(self, module: nn.Module, name: str) -> TrainableModule:
        """A module that is trained beside the run's model; to be asked for before `prepare`, which loads its state."""
        self._trained.append(TrainableModule(self.accelerator, module, name, self.optim, self.config))
        return self._trained[-1]

    def joined_at(self, name: str) -> int:
        """The steps that were done before a module of this name joined the run; to be asked for after `prepare`."""
        return self.counts.get(_began(name), 0)

    def steps(self, whole: bool = False) -> Iterator[dict[str, Tensor]]:
        """The batches of the steps that remain, each on the device; seeds, logs and saves around every step.

        Each step has `optim.accumulation` batches, and `update` is to be called after each; or, if `whole`, one batch,
        whose parts are left to the caller, who calls `end_step`.

        Raises:
            ValueError: `run.max_skipped_steps` steps in a row were skipped.
            OSError: what is to be written cannot be.
            SystemExit: after a signal by which schedulers announce the end; all is saved.
        """
        self._skipped_images = SkippedImages(self.accelerator, self.dataset, self._bad_before)
        parts = 1 if whole else self.optim.accumulation
        self._report.open(self.folder, self.step, self.optim.max_steps)
        batches = self._batches(self.dataset, start_step=self.step)
        try:
            with Stopping() as stopping:
                yield from self._steps(self._report.timed(batches, self.optim.batch_size), parts, stopping)
        finally:  # so that an error stands below the bar
            self._report.close()

    def _steps(
        self, batches: Iterable[dict[str, Tensor]], parts: int, stopping: Stopping
    ) -> Iterator[dict[str, Tensor]]:
        """`steps`, each batch in so many parts."""
        for batch in batches:
            # All randomness of a step is a function of (seed, rank, step), so a resumed run repeats it.
            torch.manual_seed(seed_of(self.config.seed, self.accelerator.process_index, self.step))
            for trained in self._trained:
                trained.begin(self.optim.learning_rate(self.step))
            batch = {name: on_device(tensor, self.device) for name, tensor in batch.items()}
            pieces = zip(*(tensor.chunk(parts) for tensor in batch.values()), strict=True)
            for index, piece in enumerate(pieces, start=1):
                with self.main.no_sync(index < parts):
                    yield dict(zip(batch, piece, strict=True))
            self._report.step()
            asked = self._skipped.sync(stopping.signal is not None, self.step)
            if warning := self._skipped.warning():
                self.warn(warning)
            if error := self._skipped.too_many(self.config.max_skipped_steps):
                raise ValueError(f"{error}; {self._files.last_state}")
            ended = self.step == self.optim.max_steps
            due = self.step % self.config.checkpoint_every == 0
            # In a row of skipped steps none is saved: it would take the place of one from before.
            if asked or ended or (due and not self._skipped.counts["skipped_in_row"]):
                self._save()
            if asked and not ended:
                self._stop(stopping)

    def update(self, loss: Tensor) -> None:
        """The gradient of a batch of `steps`; with the last one of a step, the optimiser's step down their mean."""
        self.main.backward(loss / self.optim.accumulation)
        self._parts_done += 1
        self._loss_done = loss.detach() + (0 if self._loss_done is None else self._loss_done)
        if self._parts_done == self.optim.accumulation:
            self.end_step(self.main.optimizer_step(self._loss_done))

    def end_step(self, updated: Tensor) -> None:
        """Ends the step. Where the model was not `updated`, a bool scalar, its average stays as it is."""
        if self.average is not None:
            self.average.update(updated)
        norms = {
            f"gradient_norm_{trained.name}": trained.gradient_norm
            for trained in self._trained
            if trained.gradient_norm is not None
        }
        self._skipped.count([updated, *(one.updated for one in self._trained if one.updated is not None)])
        self._skipped.observe(norms, completed=False)
        self._report.add(norms)
        self._parts_done, self._loss_done = 0, None
        self.step += 1

    def is_due(self, interval: int) -> bool:
        """Whether a step has just been completed that ends an interval, or the run."""
        return self._parts_done == 0 and (self.step % interval == 0 or self.step == self.optim.max_steps)

    def log(self, **scalars: Tensor) -> None:
        """Adds scalars to their means; those over steps and processes are written every `log_every` steps.

        What is not finite is left out of the means; `skipped_steps`, those of the run so far, stands beside them.
        """
        self._report.add(scalars)
        self._skipped.observe(scalars, completed=self._parts_done == 0)
        if self.is_due(self.config.log_every):
            counts = {"skipped_steps": self._skipped.counts["skipped_steps"], **self._skipped_images.counts()}
            if self.is_main and (warning := self._skipped_images.pop_warning()):
                self.warn(warning)
            self._report.line(self.step, **counts, lr=self.optim.learning_rate(self.step - 1))

    def counter(self, name: str, size: int) -> Tensor:
        """Counts, int64 (size,), for the script to add up on this process: a resumed run goes on with what they were.

        To be asked for after `prepare`.
        """
        return self._report.counter(name, size)

    def write(self, scalars: dict[str, float]) -> None:
        """Writes numbers of the completed step to the log, on the main process."""
        self._report.write(self.step, scalars)

    def picture(self, name: str) -> Path:
        """Where a picture of the completed step goes."""
        return self.folder / "samples" / f"{name}-{self.step:06d}.png"

    def export(self, name: str, save: Callable[[Path], None]) -> Path:
        """Writes the result folder `name` through `save(folder)` on the main process; whole, or not at all."""
        return self._files.export(name, save)

    def warn(self, message: str) -> None:
        """Prints a warning on the main process, above the progress bar."""
        self._report.warn(message)

    def _open_files(self) -> RunFolder:
        return RunFolder(self.config, self.accelerator)

    def _save(self) -> None:
        """Writes a checkpoint of the step just completed."""
        if broken := first_broken(self._trained):
            raise ValueError(
                f"{broken} is not finite after step {self.step}; {self._files.last_state}. Start again under another "
                "run.name with a lower optim.lr, or with optim.max_grad_norm"
            )
        averages = {} if self.average is None else self.average.state()
        distribution = self.accelerator.distributed_type.value
        counts, images = self.counts | self._skipped.counts, self._skipped_images.found()
        processes, threads = self.accelerator.num_processes, torch.get_num_threads()
        progress = Progress(self.step, processes, threads, distribution, counts, images)
        self._files.save(RunState(progress, averages, self._report.state() | self._skipped.state()))

    def _stop(self, stopping: Stopping) -> None:
        """Ends the process after a signal; the step is saved."""
        self._report.close()
        if self.is_main:
            name = stopping.signal.name if stopping.signal else "a signal to another process"
            print(f"{name}: step {self.step} is saved; the same command goes on from there")
        stopping.exit()

    def _resume(self, checkpoint: Path, of_other_data: bool) -> None:
        """Takes up a checkpoint."""
        averaged = self.average is not None
        parts = ChangedParts(self.accelerator, checkpoint, self._trained, averaged)
        with parts.laid_out() as folder:
            state = load_checkpoint(self.accelerator, checkpoint, averaged and not parts.averages_anew, folder)
        progress = state.progress
        self.step, self.counts = progress.step, dict(progress.counts)
        self._bad_before = [] if of_other_data else progress.bad_images
        self._skipped = SkippedSteps(
            self.accelerator, self.counts.pop("skipped_steps", 0), self.counts.pop("skipped_in_row", 0)
        )
        self.counts |= {_began(name): self.step for name in parts.anew}
        if parts.averages_anew:
            self.average.begin(self.step)
        elif self.average is not None:
            self.average.load_state(state.averages, self.step)
        self._report.load_state(state.own)
        self._skipped.load_state(state.own)
        if self.is_main:
            print(f"resuming from {checkpoint}")
            for note in parts.notes(self.step):
                print(f"note: {note}")
            if of_other_data and (number := len(progress.bad_images)):
                print(f"note: unusable images are looked for anew: the {number} so far were in other data")
            threads = torch.get_num_threads() if self.device.type == "cpu" else progress.threads
            note_processes(progress, self.accelerator.num_processes, threads)
