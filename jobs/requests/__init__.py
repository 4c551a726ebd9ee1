"""Training requests: parsed and validated in full before anything is stored."""
