"""What every room may use: settings, errors, ids, logging, the guarded way out to the network."""
