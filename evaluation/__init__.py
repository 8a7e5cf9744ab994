"""How good an optimizer is: the same inner loop, tuned baselines, honest tables."""
