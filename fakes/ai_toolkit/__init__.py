"""A fake ai-toolkit server for tests and demos, with the API, statuses, files and pitfalls of a real one.

It follows docs/rented-gpus.md. `rows` is its database, `api` the HTTP API, `worker` trains queued jobs with `quick`
or `real`, `faults` injects errors, and `pod` is the process.
"""
