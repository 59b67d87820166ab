"""Models by name: paths, caches, and downloads from a hub on loopback."""
