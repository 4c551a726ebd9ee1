"""A fake ai-toolkit server, for tests and demos: the same API, statuses and files, and the same traps.

Written from what a real one does (docs/ai-toolkit-api.md). `rows` keeps its jobs, `api` answers, `worker` trains one
job after another of a queue with `quick` or `real`, `faults` lets things go wrong, `pod` is the process.
"""
