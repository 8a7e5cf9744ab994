"""Datasets as pytrees of device arrays; nothing here imports TensorFlow."""
