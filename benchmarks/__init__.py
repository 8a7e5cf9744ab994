"""Measurements, comparable from run to run; never part of the tests."""
