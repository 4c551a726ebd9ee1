"""The stages of a job (preprocess, dataset, train, upload, settle); the runner claims each one under a lease."""
