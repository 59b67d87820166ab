"""Comparisons of ms_omni with values recorded from the reference implementation; no PyTorch is needed to run them."""
