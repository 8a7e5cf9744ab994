"""Training of text-to-image stages and pictures drawn from them."""
