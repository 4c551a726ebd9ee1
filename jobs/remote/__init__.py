"""Training on remote servers: rented pods, runs on them, and the polls that look after both."""
