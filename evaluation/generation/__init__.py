"""Scores and pictures of generated samples."""
