"""Learned optimizers of other libraries, read and written in their own files.

A module per format. Each reads a file into arrays by their names, checks them, and
renames them by a table (`tables`); the result is an `Artifact` like any other.
"""
