"""One update of a tokenizer on a batch: the same whatever parts and processes the batch is split into.

It minimises

    pixel_weight * pixel + perceptual_weight * LPIPS + sum_i w_i * quantizer loss_i + weight * lambda * generator loss

w_i are the quantizer's `loss_weights`; `weight` is the adversarial weight of the step, after its ramp; lambda is the
adaptive factor, 1 if adversarial.adaptive is false. The last term begins at adversarial.disc_start. In the code the sum
appears as surrogates: scalars with the same gradients.

The arc loss and the adaptive adversarial weight are not means over images, so the losses of parts do not add up to the
loss of the batch. Gradients of a batch in several parts are therefore taken in two passes:

    1. every part through the networks without gradients => latents and reconstructions of the whole batch
    2. the gradients of the batch's losses at reconstructions, encoder outputs and quantizer parameters
    3. every part through the networks again, and back from its share of these gradients

A batch in one part takes a single pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from arcvq.runs.named_scalars import Terms, means_of
from arcvq.runs.trained_module import TrainableModule, copies, restore
from arcvq.training.adversary import Adversary
from arcvq.training.reconstruction_loss import ReconstructionLoss
from tokenizer import VQTokenizer
from tokenizer.losses.adversarial import adaptive_weight
from tokenizer.model import TokenizerOutput


@dataclass(frozen=True)
class StepOutput:
    """The result of an update.

    Attributes:
        updated: whether the weights changed, a bool scalar; False where a loss or a gradient is not finite.
        reconstructions: of each part, (B, C, H, W), or (2 B, C, H, W) where a quantizer has each image decoded twice.
        counts: (K,) how often the batch uses each code; None without codes.
        terms: for the log; `loss` is the sum that was minimised.
    """

    updated: Tensor
    reconstructions: list[Tensor]
    counts: Tensor | None
    terms: Terms


class TokenizerUpdate:
    """The tokenizer's half of a training step.

    Args:
        accelerator: brings the processes together.
        trained: the tokenizer in training.
        reconstruction_loss: the loss on images and reconstructions.
        adversary: the discriminator that the tokenizer trains against, or None.
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
        self._last_layer_input: Tensor | None = None
        self._seed = 0  # of the update in progress
        # A flag and not a question about the step: a compiled network would be compiled anew for every answer.
        self._saves_last_layer_input = False
        if adversary is not None and adversary.config.adaptive:
            self._tokenizer.decoder.last_layer.register_forward_pre_hook(self._save_last_layer_input)

    def __call__(self, parts: Sequence[Tensor], seed: int) -> StepOutput:
        """Update the tokenizer on a batch of images.

        Args:
            parts: the batch in parts (B, C, H, W) of one size, in [-1, 1].
            seed: of the quantizer's noise in this step, the same on all processes.
        """
        outputs, last_layer_inputs = [], []
        self._seed = seed
        self._saves_last_layer_input = is_adversarial = self._adversary is not None and self._adversary.is_active
        for index in range(len(parts)):
            with torch.set_grad_enabled(len(parts) == 1):
                outputs.append(self._forward(parts, index))
            last_layer_inputs.append(self._last_layer_input)
        self._saves_last_layer_input, self._last_layer_input = False, None
        gradients, terms = self._pixel_gradients(parts, outputs, last_layer_inputs if is_adversarial else None)
        if len(parts) == 1:
            quantized = outputs[0]
            loss = self._quantizer_loss(quantized.losses)
            self._trained.backward(_surrogate(outputs[0].reconstruction, gradients[0]) + loss)
        elif self._tokenizer.codes_are_frozen:
            quantized, loss = self._decoder_backward_in_parts(parts, outputs, gradients)
        else:
            quantized, loss = self._backward_in_parts(parts, outputs, gradients)
        terms = Terms.stack({"loss": terms.pop("image_loss") + loss.detach(), **terms, **quantized.losses})
        # All terms: the adaptive weight takes a generator's loss out of the sum where it is not finite.
        updated = self._trained.optimizer_step(terms.values.sum())
        self._after_update(updated, outputs)
        return StepOutput(updated, [output.reconstruction.detach() for output in outputs], quantized.counts, terms)

    @torch.no_grad()
    def reconstruct(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Reconstruct each part with the weights as they are now, and with the noise of the last update."""
        return [self._forward(parts, index).reconstruction for index in range(len(parts))]

    def _after_update(self, updated: Tensor, outputs: Sequence[TokenizerOutput]) -> None:
        """Let the quantizer follow the update unless it is frozen; undo that where no update was made.

        The host does not know yet whether one was made.
        """
        if self._tokenizer.codes_are_frozen:
            return
        quantizer = self._tokenizer.bottleneck
        before = copies([*quantizer.buffers(), *(weight for weight in quantizer.parameters() if weight.requires_grad)])
        encoder_output = torch.cat([output.encoder_output.detach() for output in outputs])
        codes = torch.cat([output.codes for output in outputs]) if self._tokenizer.has_codes else None
        quantizer.after_update(torch.where(updated, encoder_output, 0), codes)  # some would raise an error at NaN
        restore(before, unless=updated)

    def _forward(self, parts: Sequence[Tensor], index: int) -> TokenizerOutput:
        """Send a part through the networks; the second time it meets the noise of the first."""
        self._seed_noise(self._accelerator.process_index * sum(map(len, parts)) + index * len(parts[0]))
        return self._trained.wrapped(parts[index])

    def _seed_noise(self, first_image: int) -> None:
        """Seed the quantizer's noise for images from this place of the whole batch on."""
        self._tokenizer.bottleneck.seed_noise(self._seed, first_image)

    def _pixel_gradients(
        self,
        parts: Sequence[Tensor],
        outputs: Sequence[TokenizerOutput],
        last_layer_inputs: Sequence[Tensor] | None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Differentiate the loss on images, a mean over the parts, by the reconstructions.

        Args:
            parts: the images.
            outputs: the tokenizer's on each part.
            last_layer_inputs: the inputs of the decoder's last layer for each part; None without an adversarial loss.

        Returns:
            The gradient at each part's reconstruction, and the terms of the loss.
        """
        grad_rec, grad_adv, logs = [], [], []
        leaves = [output.reconstruction.detach().requires_grad_(True) for output in outputs]
        # Where an image is decoded more than once, each of its reconstructions is compared with it.
        originals = [part.repeat(len(leaf) // len(part), 1, 1, 1) for part, leaf in zip(parts, leaves, strict=True)]
        self._reconstruction_loss.observe_batch(originals, leaves, self._accelerator)
        for part, images, leaf in zip(parts, originals, leaves, strict=True):
            loss, terms = self._reconstruction_loss(images, leaf)
            grad_rec.append(torch.autograd.grad(loss / len(parts), leaf)[0])
            terms = {"image_loss": loss, **terms}
            if last_layer_inputs is not None:
                terms["generator"] = self._adversary.generator_loss(leaf, len(part))
                grad_adv.append(torch.autograd.grad(terms["generator"] / len(parts), leaf)[0])
            logs.append({name: term.detach() for name, term in terms.items()})
        means = means_of(logs)
        if last_layer_inputs is None:
            return grad_rec, means
        weight = self._adversarial_weight(last_layer_inputs, grad_rec, grad_adv)
        means["adversarial_weight"] = weight
        # Not by multiplication alone: 0 * inf is NaN.
        means["image_loss"] = means["image_loss"] + torch.where(weight == 0, 0, weight * means["generator"])
        grad_pixel = [
            rec + torch.where(weight == 0, 0, weight * adv) for rec, adv in zip(grad_rec, grad_adv, strict=True)
        ]
        return grad_pixel, means

    def _adversarial_weight(
        self, last_layer_inputs: Sequence[Tensor], grad_rec: Sequence[Tensor], grad_adv: Sequence[Tensor]
    ) -> Tensor:
        """Compute the weight of the adversarial loss in this step, a scalar that is the same on all processes."""
        config, weight = self._adversary.config, self._adversary.weight
        if not config.adaptive:
            return torch.full((), weight, device=self._accelerator.device)
        # The gradients of the whole batch at the last layer's weights: the mean over processes, the sum over parts.
        gradients = [self._last_layer_grad(last_layer_inputs, grad_pixel) for grad_pixel in (grad_rec, grad_adv)]
        gradients = self._accelerator.reduce(torch.stack(gradients), "mean")
        return weight * adaptive_weight(*gradients, config.max_weight)

    def _last_layer_grad(self, last_layer_inputs: Sequence[Tensor], grad_pixel: Sequence[Tensor]) -> Tensor:
        """Turn gradients at the reconstructions into the gradient at the weights of the decoder's last layer."""
        last = self._tokenizer.decoder.last_layer
        total = torch.zeros_like(last.weight)
        for inputs, gradient in zip(last_layer_inputs, grad_pixel, strict=True):
            total += torch.autograd.grad(last(inputs.to(last.weight.dtype)), last.weight, gradient)[0]
        return total

    def _backward_in_parts(
        self, parts: Sequence[Tensor], outputs: Sequence[TokenizerOutput], grad_pixel: Sequence[Tensor]
    ) -> tuple[TokenizerOutput, Tensor]:
        """Send each part through the networks again, and back.

        Returns:
            The quantizer's output on the whole batch, and its loss.
        """
        quantizer = self._tokenizer.bottleneck
        parameters = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
        encoder_output = torch.cat([output.encoder_output for output in outputs]).detach().requires_grad_(True)
        self._seed_noise(self._accelerator.process_index * len(encoder_output))
        quantized = quantizer(encoder_output)
        loss = self._quantizer_loss(quantized.losses)
        grad_encoder, *grad_parameters = torch.autograd.grad(
            loss, [encoder_output, *parameters], allow_unused=True, materialize_grads=True
        )
        for index, (pixels, latents) in enumerate(zip(grad_pixel, grad_encoder.chunk(len(parts)), strict=True)):
            with self._trained.no_sync(index < len(parts) - 1):
                output = self._forward(parts, index)
                value = _surrogate(output.reconstruction, pixels) + _surrogate(output.encoder_output, latents)
                for parameter, gradient in zip(parameters, grad_parameters, strict=True):
                    value = value + _surrogate(parameter, gradient) / len(parts)
                self._trained.backward(value)
        return quantized, loss

    def _decoder_backward_in_parts(
        self, parts: Sequence[Tensor], outputs: Sequence[TokenizerOutput], grad_pixel: Sequence[Tensor]
    ) -> tuple[TokenizerOutput, Tensor]:
        """Send each part through a tokenizer with frozen codes again, and back through its decoder.

        Returns:
            An output with the whole batch's counts, and the quantizer's loss, 0.
        """
        for index, pixels in enumerate(grad_pixel):
            with self._trained.no_sync(index < len(parts) - 1):
                self._trained.backward(_surrogate(self._forward(parts, index).reconstruction, pixels))
        counts = sum(output.counts for output in outputs) if self._tokenizer.has_codes else None
        return replace(outputs[0], counts=counts), self._quantizer_loss({})

    def _quantizer_loss(self, losses: dict[str, Tensor]) -> Tensor:
        """Add up the quantizer's losses by their weights, a scalar; without losses a 0 that has a gradient."""
        weights = self._tokenizer.bottleneck.loss_weights()
        none = torch.zeros((), device=self._accelerator.device, requires_grad=not losses)
        return sum((weights[name] * loss for name, loss in losses.items()), start=none)

    def _save_last_layer_input(self, last_layer: nn.Module, inputs: tuple[Tensor]) -> None:
        """Save the input of the last layer in the passes from which the adaptive weight is computed."""
        if self._saves_last_layer_input:
            self._last_layer_input = inputs[0].detach()


def _surrogate(value: Tensor, gradient: Tensor) -> Tensor:
    """Make a scalar whose gradient at `value` is `gradient`."""
    return (value * gradient).sum()
