"""MindSpore's own Ascend backend on machines without an NPU: what it raises, which kernels it selects, how many it launches."""
