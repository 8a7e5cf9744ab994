"""Networks applied to whole tensors, and their features."""
