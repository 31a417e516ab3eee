"""The mathematics of the quantizers as functions of tensors."""
