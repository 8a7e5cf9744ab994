"""Trains a PyTorch model with a released optimizer.

pip install ./torch_lopt scikit-learn
python examples/use_in_torch.py runs/quickstart/artifact
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from torch_lopt import LearnedOptimizer

BASE_WIDTH = 32
"""The width of meta-training; `optimizer.base` in the artifact's config.json."""


def mlp(width: int) -> nn.Sequential:
    """An ordinary MLP: μP needs nothing but the same model at the base width."""
    readout = nn.Linear(width, 10)
    nn.init.zeros_(readout.weight)  # as in meta-training
    return nn.Sequential(
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        readout,
    )


def main(
    folder: Path,
    width: int = 128,
    num_steps: int = 200,
) -> float:
    """Trains at `width`; returns the last training loss."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor((images - images.mean()) / images.std()).float()
    labels = torch.tensor(labels)
    torch.manual_seed(0)
    model = mlp(width)
    # "step": the model does not multiply its readout by base width over width.
    optimizer = LearnedOptimizer.from_pretrained(
        model, folder, base=mlp(BASE_WIDTH), readout="step", num_steps=num_steps
    )
    loss = torch.tensor(torch.nan)
    for step in range(num_steps):
        rows = torch.randint(len(images), (128,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"{step:5d}  {loss.item():.3f}")
    return loss.item()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/artifact"))
