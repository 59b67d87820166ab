"""from_pretrained: its arguments, the order of its checks, and the forms that weights come in."""
