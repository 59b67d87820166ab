"""Many answers of one model at once."""
