"""One generator update of a tokenizer, over the whole batch whatever the parts and processes it is split into.

Where a loss is no mean over images, the arc loss and the adaptive adversarial weight, the parts' own losses do not add
up to the batch's. So all parts are first seen without gradients; the gradients of the batch's losses at the
reconstructions, the latents and the quantizer's parameters are taken there; then each part goes through the networks
once more, and back with its share of them. A batch in one part is seen once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from arcvq.runs.trained_module import TrainableModule, copies, restore
from arcvq.training.adversary import Adversary
from arcvq.training.reconstruction_loss import ReconstructionLoss
from tokenizer import VQTokenizer
from tokenizer.losses.adversarial import adaptive_weight
from tokenizer.model import TokenizerOutput


@dataclass(frozen=True)
class StepOutput:
    """What an update has seen of its batch.

    Attributes:
        updated: whether the update was made, a bool scalar; it is not where a loss or gradient is not finite.
        reconstructions: of each part, (B, C, H, W), or (2 B, C, H, W) where images are decoded twice.
        counts: (K,) how often each code was used; none without codes.
        terms: scalars for the log; `loss` is what was minimised.
    """

    updated: Tensor
    reconstructions: list[Tensor]
    counts: Tensor | None
    terms: dict[str, Tensor]


class TokenizerUpdate:
    """The generator update of a tokenizer.

    Args:
        accelerator: brings the processes together.
        trained: the tokenizer in training.
        reconstruction_loss: of its images.
        adversary: what it trains against, if anything.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        trained: TrainableModule,
        reconstruction_loss: ReconstructionLoss,
        adversary: Adversary | None = None,
    ):
        self._accelerator = accelerator
        self._trained = trained
        self._tokenizer: VQTokenizer = trained.module
        self._reconstruction_loss = reconstruction_loss
        self._adversary = adversary
        self._before_last: Tensor | None = None
        self._seed = 0  # of the update in progress
        # A flag and not a question about the step: a compiled network would be compiled anew for every answer.
        self._keeps = False
        if adversary is not None and adversary.config.adaptive:
            self._tokenizer.decoder.last_layer.register_forward_pre_hook(self._keep)

    def __call__(self, parts: Sequence[Tensor], seed: int) -> StepOutput:
        """The update on a batch of images, in parts (B, C, H, W) of one size.

        `seed` is that of the quantizer's noise in this step, one for all processes.
        """
        outputs, hidden = [], []
        self._seed = seed
        self._keeps = heard = self._adversary is not None and self._adversary.is_heard
        for index in range(len(parts)):
            with torch.set_grad_enabled(len(parts) == 1):
                outputs.append(self._pass(parts, index))
            hidden.append(self._before_last)
        self._keeps, self._before_last = False, None
        pulls, terms = self._image_gradients(parts, outputs, hidden if heard else None)
        if len(parts) == 1:
            quantized = outputs[0]
            loss = self._quantizer_loss(quantized.losses)
            self._trained.backward(_dot(outputs[0].reconstruction, pulls[0]) + loss)
        else:
            quantized, loss = self._back_in_parts(parts, outputs, pulls)
        terms = {"loss": terms.pop("image_loss") + loss.detach(), **terms, **quantized.losses}
        # All terms: the adaptive weight takes a generator's loss out of the sum where it is not finite.
        updated = self._trained.optimizer_step(torch.stack([term.detach().float() for term in terms.values()]).sum())
        self._after_update(updated, outputs)
        return StepOutput(updated, [output.reconstruction.detach() for output in outputs], quantized.counts, terms)

    def _after_update(self, updated: Tensor, outputs: Sequence[TokenizerOutput]) -> None:
        """Lets the quantizer follow, and takes it back where the update was not made: the host does not know yet."""
        quantizer = self._tokenizer.bottleneck
        before = copies([*quantizer.buffers(), *(weight for weight in quantizer.parameters() if weight.requires_grad)])
        encoder_output = torch.cat([output.encoder_output.detach() for output in outputs])
        codes = torch.cat([output.codes for output in outputs]) if self._tokenizer.has_codes else None
        quantizer.after_update(torch.where(updated, encoder_output, 0), codes)  # NaN would be an error to some
        restore(before, unless=updated)

    def _pass(self, parts: Sequence[Tensor], index: int) -> TokenizerOutput:
        """A part through the networks; again, it meets the same noise again."""
        self._seed_noise(self._accelerator.process_index * sum(map(len, parts)) + index * len(parts[0]))
        return self._trained.wrapped(parts[index])

    def _seed_noise(self, first_image: int) -> None:
        """Makes the quantizer's noise that of images from this place of the whole batch on."""
        self._tokenizer.bottleneck.seed_noise(self._seed, first_image)

    def _image_gradients(
        self, parts: Sequence[Tensor], outputs: Sequence[TokenizerOutput], hidden: Sequence[Tensor] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The gradient at each part's reconstruction of the loss on images, a mean over the parts, and its terms.

        With `hidden`, what goes into the last layer for each part, the adversary's loss is one of them.
        """
        towards_images, towards_real, logs = [], [], []
        leaves = [output.reconstruction.detach().requires_grad_(True) for output in outputs]
        # Where an image is decoded more than once, each of its reconstructions is compared with it.
        originals = [part.repeat(len(leaf) // len(part), 1, 1, 1) for part, leaf in zip(parts, leaves, strict=True)]
        self._reconstruction_loss.see(originals, leaves, self._accelerator)
        for images, leaf in zip(originals, leaves, strict=True):
            loss, terms = self._reconstruction_loss(images, leaf)
            towards_images.append(torch.autograd.grad(loss / len(parts), leaf)[0])
            terms = {"image_loss": loss, **terms}
            if hidden is not None:
                terms["generator"] = self._adversary.generator_loss(leaf)
                towards_real.append(torch.autograd.grad(terms["generator"] / len(parts), leaf)[0])
            logs.append({name: term.detach() for name, term in terms.items()})
        means = {name: torch.stack([terms[name] for terms in logs]).mean() for name in logs[0]}
        if hidden is None:
            return towards_images, means
        weight = self._adversarial_weight(hidden, towards_images, towards_real)
        means["adversarial_weight"] = weight
        # Not by multiplication alone: what is not finite would remain so.
        means["image_loss"] += torch.where(weight == 0, 0, weight * means["generator"])
        pulls = [a + torch.where(weight == 0, 0, weight * b) for a, b in zip(towards_images, towards_real, strict=True)]
        return pulls, means

    def _adversarial_weight(
        self, hidden: Sequence[Tensor], towards_images: Sequence[Tensor], towards_real: Sequence[Tensor]
    ) -> Tensor:
        """Of the adversarial loss in this step, a scalar that is the same on all processes."""
        config, weight = self._adversary.config, self._adversary.weight
        if not config.adaptive:
            return torch.tensor(weight, device=self._accelerator.device)
        # The gradients at the last weights of the whole batch: the mean over processes, the sum over parts.
        gradients = [self._at_last_weights(hidden, pulls) for pulls in (towards_images, towards_real)]
        gradients = self._accelerator.reduce(torch.stack(gradients), "mean")
        return weight * adaptive_weight(*gradients, config.max_weight)

    def _at_last_weights(self, hidden: Sequence[Tensor], pulls: Sequence[Tensor]) -> Tensor:
        """The gradient at the decoder's last weights for these gradients at the reconstructions."""
        last = self._tokenizer.decoder.last_layer
        total = torch.zeros_like(last.weight)
        for before, pull in zip(hidden, pulls, strict=True):
            total += torch.autograd.grad(last(before.to(last.weight.dtype)), last.weight, pull)[0]
        return total

    def _back_in_parts(
        self, parts: Sequence[Tensor], outputs: Sequence[TokenizerOutput], pulls: Sequence[Tensor]
    ) -> tuple[TokenizerOutput, Tensor]:
        """Takes each part through the networks and back; what the quantizer says of the whole batch, and its loss."""
        quantizer = self._tokenizer.bottleneck
        parameters = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
        encoder_output = torch.cat([output.encoder_output for output in outputs]).detach().requires_grad_(True)
        self._seed_noise(self._accelerator.process_index * len(encoder_output))
        quantized = quantizer(encoder_output)
        loss = self._quantizer_loss(quantized.losses)
        at_moments, *at_parameters = torch.autograd.grad(
            loss, [encoder_output, *parameters], allow_unused=True, materialize_grads=True
        )
        for index, (pull, at_part) in enumerate(zip(pulls, at_moments.chunk(len(parts)), strict=True)):
            with self._trained.no_sync(index < len(parts) - 1):
                output = self._pass(parts, index)
                value = _dot(output.reconstruction, pull) + _dot(output.encoder_output, at_part)
                for parameter, gradient in zip(parameters, at_parameters, strict=True):
                    value = value + _dot(parameter, gradient) / len(parts)
                self._trained.backward(value)
        return quantized, loss

    def _quantizer_loss(self, losses: dict[str, Tensor]) -> Tensor:
        """The quantizer's losses by their weights, a scalar."""
        weights = self._tokenizer.bottleneck.loss_weights()
        none = torch.zeros((), device=self._accelerator.device)
        return sum((weights[name] * loss for name, loss in losses.items()), start=none)

    def _keep(self, last_layer: nn.Module, inputs: tuple[Tensor]) -> None:
        """Keeps what goes into the last layer in the forward passes of which the adaptive weight is taken."""
        if self._keeps:
            self._before_last = inputs[0].detach()


def _dot(value: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient at `value` is `gradient`."""
    return (value * gradient).sum()
