"""What holds for every request: middleware, limits, and bodies."""
