"""The life of one training: requests, leases, transitions between states, stages, and the services around them."""
