"""Text, pixels and mel features: the parts of `ms_omni.processor`. No MindSpore, no PyTorch."""
