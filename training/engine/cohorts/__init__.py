"""Jobs that train together: their shape, their slots, and the batches of each."""
