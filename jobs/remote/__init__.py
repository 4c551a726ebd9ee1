"""Training on remote servers: rented pods, runs on servers, and the polls that follow both."""
