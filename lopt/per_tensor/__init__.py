"""Networks applied to whole tensors, and what they see of the training loss."""
