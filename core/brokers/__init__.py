"""The broker and the result store: their addresses and options, the queues, and the private Redis of the default."""
