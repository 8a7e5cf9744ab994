"""One meta-training run: its directory, metrics, validation and processes."""
