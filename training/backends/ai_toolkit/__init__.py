"""Training on an ai-toolkit server: its HTTP API, what a training needs of it, its files. No torch in here.

`server` speaks the API, `work` does what a training needs (submit, look, collect, cancel, clear), `config` and
`convert` translate: our recipe into its job, its file into ours. `fake` is such a server for tests and demos.
"""
