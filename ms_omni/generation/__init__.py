"""Turning model steps into sequences: sampling, the text loop and the speech chain."""
