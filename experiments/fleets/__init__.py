"""Many commands over workers and machines."""
