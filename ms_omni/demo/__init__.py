"""What `ms-omni demo` does: sample files of every kind, asked one after the other (`samples`), and a picture of it all (`picture`)."""
