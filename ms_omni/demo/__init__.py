"""What `ms-omni demo` does: sample files of every kind, asked one after the other, and a picture of it all."""
