"""What is optimized: models and data behind one `Task` interface."""

from tasks.base import Task
from tasks.classification import ImageClassification
from tasks.data.embedded import Digits
from tasks.models.mlp import MLP

__all__ = ["MLP", "Digits", "ImageClassification", "Task"]
