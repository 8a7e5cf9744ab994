"""Tasks whose functions come from outside of this package."""
