"""Run a training: the run folder, the seeds of each step, EMA, logs, checkpoints and resuming.

    runs/<name>/config.yaml          all settings, in the form that --config reads
    runs/<name>/data.txt             a line that describes the data set
    runs/<name>/starts.jsonl         the code and the machine of each start
    runs/<name>/checkpoints/step-<n> the state that a resumed run loads
    runs/<name>/metrics.jsonl        numbers by step; tensorboard/ holds the same as events
    runs/<name>/samples/             pictures made during training
    runs/<name>/<artefact>/          the result, in diffusers' layout

The training loops are in arcvq/training.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.utils.data import Dataset

from arcvq.checkpoints.checkpoint import RunState, load_checkpoint, note_processes
from arcvq.checkpoints.manifest import Progress, step_of
from arcvq.compute.bf16 import slow_bf16
from arcvq.compute.resumable import LONGEST_WAIT
from arcvq.compute.threads import choose_threads
from arcvq.runs.changed_parts import ChangedParts
from arcvq.runs.ema import Average
from arcvq.runs.folder import RunFolder
from arcvq.runs.named_scalars import Terms
from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.progress import RunReport
from arcvq.runs.seeds import be_deterministic, seed_of
from arcvq.runs.settings import read_settings
from arcvq.runs.signals import Stopping
from arcvq.runs.skipped_images import SkippedImages
from arcvq.runs.skipped_steps import SkippedSteps
from arcvq.runs.starts import record_start
from arcvq.runs.trained_module import TrainableModule, first_nonfinite_parameter, on_device
from tokenizer.data import training_batches
from tokenizer.functional.noise import ImageNoise

# Rank used when all processes must draw the same numbers.
_ALL_RANKS = 1 << 32


def _began(name: str) -> str:
    """Name the counter that holds the step at which a module joined the run."""
    return f"{name}_began"


class Run:
    """One training run: its folder, its current step, and all that happens around a step.

    Args:
        config: where the run writes, and how often.
        optim: batch size, learning rate and length of the training.
        settings: all options of the training, nested; stored in the folder and compared on resuming.
        accelerator: made here if None.

    Attributes:
        step: number of completed steps.
        counts: counters of the training, by name; checkpoints store them.
        data: a line that describes the data set; stored in the folder.
        was: the settings that the folder's run has had so far, nested; empty for a new run.
        average: EMA of the model's parameters, if the run keeps one.
        captures: whether the training captures its step as a CUDA graph.

    Raises:
        ValueError: the folder holds checkpoints of a run with other settings, which are named, or another process
            uses it.
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
        torch.backends.cudnn.benchmark = not config.deterministic
        handlers = [
            InitProcessGroupKwargs(timeout=LONGEST_WAIT),
            # Buffers change by the same numbers on all processes. A bucket that is the gradient saves a copy of it.
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        ]
        self.accelerator = accelerator or Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=handlers)
        if self.accelerator.mixed_precision == "fp16" and self.accelerator.scaler is None:
            raise ValueError("run.mixed_precision fp16 needs a GPU, whose gradients it scales; set bf16, or no")
        settings["run"]["mixed_precision"] = self.accelerator.mixed_precision  # None means accelerate's own setting
        self.settings = settings
        optim.check_batch(self.accelerator.num_processes)
        self._files = self._open_files()
        self._files.check_settings("config.yaml", settings)
        self._threads = choose_threads(config.threads)
        torch.manual_seed(config.seed)
        self.step = 0
        self.counts: dict[str, int] = {}
        self.data = ""
        self.was: dict[str, Any] = {}
        self.average: Average | None = None
        self.captures = False
        self._trained: list[TrainableModule] = []
        self._parts_done = 0  # of the current step
        self._loss_done: Tensor | None = None  # sum over these parts
        self._report = RunReport(self.accelerator)
        self._bad_before: list[int] = []  # images skipped before this start
        self._skipped = SkippedSteps(self.accelerator)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._files.path

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes."""
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return self.accelerator.device

    @property
    def noise_seed(self) -> int:
        """Seed of the noise that all processes draw alike in the current step."""
        return seed_of(self.config.seed, _ALL_RANKS, self.step)

    def capture(self, unless: str | None) -> None:
        """Let the training capture its step as a CUDA graph, or say why it cannot; call it before a module is added."""
        self.captures = unless is None
        if unless is not None and self.is_main:
            print(f"note: run.cuda_graph: {unless}; the host launches the kernels of each step one by one")

    def noise(self, images: int) -> ImageNoise:
        """Create the noise of this process's current part of the batch: any split of the batch draws the same.

        Args:
            images: number of images of the part, of which all parts have equally many.
        """
        part = self.accelerator.process_index * self.optim.accumulation + self._parts_done
        return ImageNoise(images, self.device, self.noise_seed, part * images)

    def prepare(
        self,
        model: nn.Module,
        dataset: Dataset,
        inputs: dict[str, str],
        num_workers: int = 0,
        ema_decay: float | None = None,
    ) -> nn.Module:
        """Open the run folder, make the optimizer, wrap the model for this machine, and load the newest checkpoint.

        Args:
            model: the model to train.
            dataset: the training data; until `steps` is called, `self.dataset` may be set to another form of it.
            inputs: fingerprints of what the run starts from; they must be the same when the run resumes.
            num_workers: processes that load data.
            ema_decay: of `self.average`, the EMA of the model's parameters; None keeps none.

        Returns:
            the wrapped model.
        """
        self._batches = partial(
            training_batches,
            batch_size=self.optim.batch_size,
            seed=self.config.seed,
            stop_step=self.optim.max_steps,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            num_workers=num_workers,
            device=self.device,
        )
        self.dataset = dataset
        # A batch size that does not fit is an error here, before anything is written.
        self._batches(dataset, start_step=0)
        self._files.check_settings("inputs.yaml", inputs)
        self.model = model
        self.main = self.add_module(model, "model")  # may raise, so this comes before anything is written
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
        if self.is_main and done < self.optim.max_steps:  # only now is it certain that the run can start
            self._files.write_config(self.settings, inputs, self.data)
            record_start(self.folder, self.step, self.accelerator.num_processes)
            print(self._threads)
            if slow := slow_bf16(self.accelerator.mixed_precision, self.device):
                print(f"note: {slow}")
        return self.main.wrapped

    def add_module(self, module: nn.Module, name: str) -> TrainableModule:
        """Add a module that is trained in addition to the model; call this before `prepare`, which loads its state."""
        self._trained.append(TrainableModule(self.accelerator, module, name, self.optim, self.config, self.captures))
        return self._trained[-1]

    def joined_at(self, name: str) -> int:
        """Return the step at which this module joined the run, 0 for the start; call this after `prepare`."""
        return self.counts.get(_began(name), 0)

    def steps(self, whole: bool = False) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of the remaining steps on the device; seed, log and save around every step.

        A step yields `optim.accumulation` micro-batches, and the caller calls `update` after each of them. If `whole`,
        a step yields its whole batch; then the caller splits it into micro-batches, and calls `record_step` and
        `end_step`.

        Raises:
            ValueError: `run.max_skipped_steps` steps in a row were skipped.
            OSError: a checkpoint or the log cannot be written.
            SystemExit: a signal has announced the end of the job; the state is saved.
        """
        self._skipped_images = SkippedImages(self.accelerator, self.dataset, self._bad_before)
        parts = 1 if whole else self.optim.accumulation
        self._report.open(self.folder, self.step, self.optim.max_steps)
        batches = self._batches(self.dataset, start_step=self.step)
        try:
            with Stopping() as stopping:
                yield from self._steps(self._report.timed(batches, self.optim.batch_size), parts, stopping)
        finally:  # an error is then printed below the bar
            self._report.close()

    def _steps(
        self, batches: Iterable[dict[str, Tensor]], parts: int, stopping: Stopping
    ) -> Iterator[dict[str, Tensor]]:
        """Yield each batch in `parts` parts, and save and stop between steps."""
        for batch in batches:
            # All randomness of a step is a function of (seed, rank, step), so a resumed run repeats it.
            torch.manual_seed(seed_of(self.config.seed, self.accelerator.process_index, self.step))
            for trained in self._trained:
                trained.begin(self.optim.learning_rate(self.step))
            if self.average is not None:
                self.average.begin_step()
            batch = {name: on_device(tensor, self.device) for name, tensor in batch.items()}
            pieces = zip(*(tensor.chunk(parts) for tensor in batch.values()), strict=True)
            for index, piece in enumerate(pieces, start=1):
                with self.main.no_sync(index < parts):
                    yield dict(zip(batch, piece, strict=True))
            self._report.step()
            stop_requested = self._skipped.sync(stopping.signal is not None, self.step)
            if warning := self._skipped.warning():
                self.warn(warning)
            if error := self._skipped.too_many(self.config.max_skipped_steps):
                raise ValueError(f"{error}; {self._files.last_state}")
            ended = self.step == self.optim.max_steps
            due = self.step % self.config.checkpoint_every == 0
            # In a row of skipped steps nothing is saved, because it would replace a checkpoint from before the row.
            if stop_requested or ended or (due and not self._skipped.counts["skipped_in_row"]):
                self._save()
            if stop_requested and not ended:
                self._stop(stopping)

    def update(self, loss: Tensor, terms: Terms) -> None:
        """Accumulate the gradient of a micro-batch's loss; with the last one of a step, take the optimizer step.

        Args:
            loss: the mean over the micro-batch, a scalar.
            terms: for the log; see `record`.
        """
        self.main.backward(loss / self.optim.accumulation)
        self._parts_done += 1
        self._loss_done = loss.detach() + (0 if self._loss_done is None else self._loss_done)
        if self._parts_done < self.optim.accumulation:
            self.record(terms)
        else:
            self.record_step(self.main.optimizer_step(self._loss_done), terms)
            self.end_step()

    def record(self, terms: Terms) -> None:
        """Add scalars of a micro-batch to their means over steps and processes, which the log gets.

        Values that are not finite are left out of the means.
        """
        self._report.add(terms)
        self._skipped.observe(terms, completed=False)

    def record_step(self, updated: Tensor, terms: Terms) -> None:
        """Record a whole step on the device: update the average, count the step, add terms and gradient norms to means.

        Args:
            updated: whether the model's parameters were updated, a bool scalar; if not, the average stays unchanged.
            terms: for the log; see `record`.
        """
        if self.average is not None:
            self.average.update(updated)
        trained = [module for module in self._trained if module.updated is not None]
        self._skipped.count([module.updated for module in trained] or [updated])
        if trained:
            terms |= Terms.stack({f"gradient_norm_{module.name}": module.gradient_norm for module in trained})
        self._report.add(terms)
        self._skipped.observe(terms, completed=True)

    def end_step(self) -> None:
        """Count a recorded step; every `log_every` steps write the means to the log, with the skipped steps so far."""
        self._parts_done, self._loss_done = 0, None
        self.step += 1
        if self.is_due(self.config.log_every):
            self._write_line()

    def _write_line(self) -> None:
        """Write the means since the last line to the log."""
        counts = {"skipped_steps": self._skipped.counts["skipped_steps"], **self._skipped_images.counts()}
        if self.is_main and (warning := self._skipped_images.pop_warning()):
            self.warn(warning)
        self._report.line(self.step, **counts, lr=self.optim.learning_rate(self.step - 1))

    def is_due(self, interval: int) -> bool:
        """Tell whether the step just completed is a multiple of `interval`, or the last one."""
        return self._parts_done == 0 and (self.step % interval == 0 or self.step == self.optim.max_steps)

    def counter(self, name: str, size: int) -> Tensor:
        """Return a tensor of counts, int64 (size,), that this process adds to; a resumed run continues with its values.

        Call this after `prepare`.
        """
        return self._report.counter(name, size)

    def write(self, scalars: dict[str, float]) -> None:
        """Write numbers of the completed step to the log, on the main process."""
        self._report.write(self.step, scalars)

    def picture(self, name: str) -> Path:
        """Return the path for a picture of the completed step."""
        return self.folder / "samples" / f"{name}-{self.step:06d}.png"

    def export(self, name: str, save: Callable[[Path], None]) -> Path:
        """Write the result folder `name` atomically with `save(folder)`, on the main process."""
        return self._files.export(name, save)

    def warn(self, message: str) -> None:
        """Print a warning on the main process, above the progress bar."""
        self._report.warn(message)

    def _open_files(self) -> RunFolder:
        return RunFolder(self.config, self.accelerator)

    def _save(self) -> None:
        """Write a checkpoint of the step just completed."""
        if name := first_nonfinite_parameter(self._trained):
            raise ValueError(
                f"{name} is not finite after step {self.step}; {self._files.last_state}. Start again under another "
                "run.name with a lower optim.lr, or with optim.max_grad_norm"
            )
        averages = {} if self.average is None else self.average.state()
        distribution = self.accelerator.distributed_type.value
        counts, images = self.counts | self._skipped.counts, self._skipped_images.found()
        processes, threads = self.accelerator.num_processes, torch.get_num_threads()
        progress = Progress(self.step, processes, threads, distribution, counts, images)
        self._files.save(RunState(progress, averages, self._report.state() | self._skipped.state()))

    def _stop(self, stopping: Stopping) -> None:
        """End the process after a signal; the step is already saved."""
        self._report.close()
        if self.is_main:
            name = stopping.signal.name if stopping.signal else "a signal to another process"
            print(f"{name}: step {self.step} is saved; the same command goes on from there")
        stopping.exit()

    def _resume(self, checkpoint: Path, of_other_data: bool) -> None:
        """Load a checkpoint; note what has changed since."""
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
        if self.config.deterministic and self.device.type == "cpu":
            self._threads = choose_threads(self.config.threads, before=progress.threads)
        if self.is_main:
            print(f"resuming from {checkpoint}")
            for note in parts.notes(self.step):
                print(f"note: {note}")
            if of_other_data and (number := len(progress.bad_images)):
                print(f"note: unusable images are looked for anew: the {number} so far were in other data")
            threads = torch.get_num_threads() if self.device.type == "cpu" else progress.threads
            note_processes(progress, self.accelerator.num_processes, threads)
