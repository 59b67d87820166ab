"""Recorded reference values, the scripts that recorded them, and the inputs both sides build from a seed."""
