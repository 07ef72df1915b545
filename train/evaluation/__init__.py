"""How good the pictures are: pixel.py compares them with the truth."""
