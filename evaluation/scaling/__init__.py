"""Behaviour across widths: coordinate checks, feature checks, rate transfer."""
