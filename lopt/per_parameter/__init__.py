"""Networks applied to every parameter: features, accumulators, fast evaluation."""
