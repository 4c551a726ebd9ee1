"""What strangers may send: addresses and files, each with the error that it gets."""
