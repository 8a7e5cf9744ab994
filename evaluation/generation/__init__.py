"""Text-to-image stages trained by any optimizer, and pictures drawn from them."""
