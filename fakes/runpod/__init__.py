"""A RunPod on this machine: its API, prices and errors, and pods that run a fake ai-toolkit server."""
