"""Learned optimizers, one a file."""
