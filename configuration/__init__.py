"""What every room stands on: configurations, their encoding, files on disk."""
