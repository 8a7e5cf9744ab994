"""Evaluation of optimizers: runs, tuned baselines, tables and reports."""
