"""What a worker does beside its tasks: start and stop, device check, heartbeat, metrics."""
