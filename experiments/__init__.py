"""Named configurations and thin command lines; no numerics."""
