"""Many independent commands, on one machine or on a SLURM cluster."""
