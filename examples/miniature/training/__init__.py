"""How the miniature is made: data, training and evaluation (PyTorch and transformers 5.x; users need none of it)."""

import sys

sys.modules.setdefault("torchvision", None)  # transformers looks for it although the model never uses it
