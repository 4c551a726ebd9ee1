"""What deploy/ says, linted, rendered and, as far as one machine can, run."""
