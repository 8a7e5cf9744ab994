"""Readers and writers of other libraries' learned optimizers, a module per format.

Each reads a file into named arrays, checks them and renames them by a table (`tables`)
into an `Artifact`.
"""
