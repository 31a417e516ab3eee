"""Mathematics of the quantizers, as functions of tensors."""
