"""What people bring, turned into arrays: conversations, files and settings of a checkpoint. No MindSpore, no PyTorch."""
