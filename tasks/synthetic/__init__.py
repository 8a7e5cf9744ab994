"""Tasks without a model: quadratics and a curved valley."""
