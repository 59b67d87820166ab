"""Many callers on one model, each answered as if alone."""
