"""Several LoRAs trained at once on one frozen base model: stacked adapters, one batched step, jobs that come and go."""
