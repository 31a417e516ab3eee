"""The adversarial loss of a tokenizer: its options, the schedule of its weight, and the discriminator in training."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Literal

import torch
from torch import Tensor

from arcvq.runs.named_scalars import means_of
from arcvq.runs.run import Run
from tokenizer.losses.adversarial import (
    GANLoss,
    discriminator_loss,
    generator_loss,
    image_logits,
    lecam_penalty,
    r1_penalty,
)
from tokenizer.networks.discriminator import PatchDiscriminator
from tokenizer.networks.discriminator_contract import Discriminator
from tokenizer.networks.stylegan2_discriminator import StyleGAN2Discriminator

# Decay of the running means of the logits (Tseng et al. 2021, LeCAM).
_LECAM_DECAY = 0.999
# Options of one kind of discriminator alone.
_OPTIONS = {"patch": ("channels", "layers", "norm"), "stylegan2": ("max_channels",)}
# Name of the discriminator in the log and among the run's modules.
_NAME = "discriminator"


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial loss; without a weight there is none.

    Args:
        weight: weight of the adversarial loss; 0: no discriminator.
        loss: hinge, non_saturating, or hinge_softplus: hinge for the discriminator, and the tokenizer's loss of
            non_saturating.
        average_logits: whether logits are averaged over the patches and reconstructions of an image before the loss.
        adaptive: whether to multiply the weight by the ratio of two gradient norms at the decoder's last layer: of the
            reconstruction loss, and of the adversarial loss.
        max_weight: largest value of that ratio, which is highest when the discriminator enters.
        disc_start: start of the adversarial loss: a step, or, below 1, a share of the training, which then cannot be
            made longer.
        ramp_steps: steps after the start over which the weight rises linearly from 0.
        pretrain_steps: steps before the start in which the discriminator alone trains.
        discriminator: patch, VQGAN's, or stylegan2, which sees whole images, their sides a power of two.
        channels: width of patch after its first convolution.
        layers: the convolutions of stride 2 of patch.
        norm: norm of patch: group, which trains alike for any split of the batch, or batch, as published.
        max_channels: width of stylegan2 at sides of 64 pixels and less.
        discriminator_factor: factor of the discriminator's loss on logits; its penalties have weights of their own.
        r1_weight: weight of R1, the penalty on the discriminator's gradient at real images.
        r1_every: steps between two such penalties, each multiplied by this number.
        lecam_weight: weight of LeCAM, the penalty on logits far from the running mean of the other kind of images.
        fresh_reconstructions: whether the discriminator trains on reconstructions that the tokenizer makes after its
            update, by one more forward pass, as the code of VQGAN, CVQ-VAE, VQGAN-LC and ArcVQ-VAE does; else on those
            of the update, as LlamaGen and VAEVQ.
    """

    weight: float = 0.0
    loss: GANLoss = "hinge"
    average_logits: bool = False
    adaptive: bool = True
    max_weight: float = 10.0
    disc_start: float = 0.0
    ramp_steps: int = 0
    pretrain_steps: int = 0
    discriminator: Literal["patch", "stylegan2"] = "patch"
    channels: int = 64
    layers: int = 3
    norm: Literal["group", "batch"] = "group"
    max_channels: int = 512
    discriminator_factor: float = 1.0
    r1_weight: float = 0.0
    r1_every: int = 16
    lecam_weight: float = 0.0
    fresh_reconstructions: bool = False

    def start(self, max_steps: int) -> int:
        """Compute the step, counted from 0, in which the adversarial loss begins."""
        return round(self.disc_start * max_steps) if self.disc_start < 1 else int(self.disc_start)

    def fullest_step(self, max_steps: int) -> int:
        """Return a step, counted from 0, in which all loss terms are active, for the dry run."""
        last = max_steps - 1
        with_penalty = last - last % self.r1_every
        return with_penalty if with_penalty >= self.start(max_steps) else last

    def check(self, max_steps: int) -> None:
        """Raise ValueError for a number that cannot work."""
        for name in ("weight", "max_weight", "disc_start", "ramp_steps", "pretrain_steps", "r1_weight", "lecam_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"adversarial.{name} must not be negative, got {getattr(self, name)}")
        if not self.discriminator_factor > 0:
            raise ValueError(f"adversarial.discriminator_factor must be above 0, got {self.discriminator_factor}")
        for name in ("weight", "discriminator_factor", "r1_weight", "lecam_weight"):
            if getattr(self, name) == inf:
                raise ValueError(f"adversarial.{name} must be finite, got {getattr(self, name)}")
        self._check_discriminator()
        if self.r1_every < 1:
            raise ValueError(f"adversarial.r1_every must be at least 1, got {self.r1_every}")
        if self.disc_start > 1 and self.disc_start % 1 != 0:
            raise ValueError(f"adversarial.disc_start is a share below 1 or a whole step, got {self.disc_start}")
        if self.weight and self.start(max_steps) >= max_steps:
            raise ValueError(
                f"adversarial.disc_start {self.disc_start:g} is not before the end, optim.max_steps {max_steps}: the "
                "adversarial loss would never begin; lower it, or set adversarial.weight 0"
            )

    def _check_discriminator(self) -> None:
        """Raise ValueError for an option of the discriminator that is not chosen."""
        of = {option: kind for kind, options in _OPTIONS.items() for option in options if kind != self.discriminator}
        for option in fields(self):
            if option.name in of and getattr(self, option.name) != option.default:
                raise ValueError(
                    f"adversarial.{option.name} is an option of adversarial.discriminator {of[option.name]}, not of "
                    f"{self.discriminator}: leave it at {option.default}, or take the other discriminator"
                )

    def make_discriminator(self, in_channels: int, image_size: int) -> Discriminator:
        """Build the discriminator of square images (B, in_channels, image_size, image_size).

        Raises:
            ValueError: a size that cannot work.
        """
        if self.discriminator == "stylegan2":
            return StyleGAN2Discriminator(in_channels, image_size, self.max_channels)
        return PatchDiscriminator(in_channels, self.channels, self.layers, self.norm)


class Adversary:
    """A discriminator in training. Build it before `Run.prepare`, which loads its state.

    Args:
        run: the run that trains it.
        config: the options of the adversarial loss.
        in_channels: channels of the images.
        image_size: side of the images.
        decodes: reconstructions of each image in a step.

    Attributes:
        config: as given.

    Raises:
        ValueError: images of this size, or parts of a batch of this number, are not for the discriminator; or the
            processes cannot share a batch normalisation.
    """

    def __init__(self, run: Run, config: AdversarialConfig, in_channels: int, image_size: int, decodes: int = 1):
        discriminator = config.make_discriminator(in_channels, image_size)
        discriminator.check_size(image_size, image_size)
        if config.norm == "batch" and run.accelerator.num_processes > 1:
            if run.device.type != "cuda":
                raise ValueError("adversarial.norm batch on several processes needs GPUs; take adversarial.norm group")
            if config.r1_weight:  # a batch normalisation over processes has no second derivative
                raise ValueError("adversarial.r1_weight on several processes needs adversarial.norm group")
            discriminator = torch.nn.SyncBatchNorm.convert_sync_batchnorm(discriminator)
        images = run.optim.batch_size // (run.accelerator.num_processes * run.optim.accumulation)
        for number in (images, decodes * images):
            discriminator.check_batch(number)
        self._run = run
        self.config = config
        self._trained = run.add_module(discriminator, _NAME)

    def resume(self) -> None:
        """Adapt the state that `Run.prepare` has loaded to the present options; warn of what restarts or never starts.

        Call it once, after `Run.prepare`.
        """
        run, config = self._run, self.config
        if not run.step:
            return
        if self._start >= run.optim.max_steps > run.step:
            run.warn(
                f"the adversarial loss would begin after step {self._start}, the run ends with {run.optim.max_steps}: "
                "lower adversarial.pretrain_steps, or raise optim.max_steps"
            )
        if not config.lecam_weight:  # a later run with LeCAM must not begin with outdated means
            self._trained.module.anchors.zero_()
        before = run.was.get("adversarial")
        had_lecam = isinstance(before, dict) and bool(before.get("lecam_weight"))
        if run.is_main and run.joined_at(_NAME) < run.step and had_lecam != bool(config.lecam_weight):
            what = "start anew" if config.lecam_weight else "end"
            print(f"note: LeCAM's running means of the logits {what} after step {run.step}")

    @property
    def discriminator(self) -> Discriminator:
        """The discriminator itself, not wrapped."""
        return self._trained.module

    @property
    def _start(self) -> int:
        """Step, counted from 0, of the first adversarial loss; a discriminator that joins late trains alone first."""
        start, began = self.config.start(self._run.optim.max_steps), self._run.joined_at(_NAME)
        return max(start, began + self.config.pretrain_steps) if began else start

    @property
    def is_active(self) -> bool:
        """Whether the tokenizer has an adversarial loss at the current step."""
        return self._run.step >= self._start

    @property
    def is_training(self) -> bool:
        """Tell whether the discriminator trains at the current step."""
        return self._run.step >= self._start - self.config.pretrain_steps

    @property
    def weight(self) -> float:
        """Weight of the adversarial loss at the current step, before the adaptive factor."""
        ramp = self.config.ramp_steps
        return self.config.weight * (min(1.0, (self._run.step - self._start + 1) / ramp) if ramp else 1.0)

    def generator_loss(self, reconstructions: Tensor, images: int) -> Tensor:
        """Compute the generator's loss, a scalar; freeze the discriminator.

        Args:
            reconstructions: (B, C, H, W), or (2 B, C, H, W) of a quantizer that has each image decoded twice.
            images: B.
        """
        discriminator = self._trained.module.requires_grad_(False)
        loss = generator_loss(self._judged(discriminator(reconstructions)[0], images), self.config.loss)
        discriminator.requires_grad_(True)
        return loss

    def _judged(self, logits: Tensor, images: int) -> Tensor:
        """Return the logits that losses take: those of patches, or of whole images."""
        return image_logits(logits, images) if self.config.average_logits else logits

    def update(self, images: Sequence[Tensor], reconstructions: Sequence[Tensor]) -> dict[str, Tensor]:
        """Update the discriminator on the parts of a batch, if it `is_training`; return terms for the log."""
        if not self.is_training:
            return {}
        logs, total = [], torch.zeros((), device=self._run.device)
        for index, (real, fake) in enumerate(zip(images, reconstructions, strict=True), start=1):
            with self._trained.no_sync(index < len(images)):
                loss, terms = self._loss(real, fake.detach())
                self._trained.backward(loss / len(images))
            logs.append(terms)
            total = total + loss.detach()
        means = means_of(logs)
        updated = self._trained.optimizer_step(total)
        if self.config.lecam_weight:
            both = self._run.accelerator.reduce(torch.stack([means["logits_real"], means["logits_fake"]]), "mean")
            anchors = self._trained.module.anchors
            anchors.copy_(torch.where(updated, anchors.lerp(both, 1 - _LECAM_DECAY), anchors))
        return means

    def _loss(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the discriminator's loss on one part, and its terms."""
        config = self.config
        real_logits, fake_logits = (self._judged(logits, len(real)) for logits in self._trained.wrapped(real, fake))
        loss = discriminator_loss(real_logits, fake_logits, config.loss)
        means = {"logits_real": real_logits.detach().mean(), "logits_fake": fake_logits.detach().mean()}
        terms = {"discriminator": loss, **means}
        if config.discriminator_factor != 1:
            loss = config.discriminator_factor * loss
        if config.r1_weight and self._run.step % config.r1_every == 0:
            # `forward` and not the module itself: a compiled module has no second derivative.
            terms["r1"] = r1_penalty(lambda images: self._trained.module.forward(images)[0], real)
            loss = loss + config.r1_weight * config.r1_every * terms["r1"]
        if config.lecam_weight:
            terms["lecam"] = lecam_penalty(real_logits, fake_logits, *self._trained.module.anchors)
            loss = loss + config.lecam_weight * terms["lecam"]
        return loss, {name: term.detach() for name, term in terms.items()}
