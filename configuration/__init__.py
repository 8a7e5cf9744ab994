"""Configurations, their encoding as JSON, and files on disk."""
