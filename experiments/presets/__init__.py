"""Named configurations and their stored form."""
