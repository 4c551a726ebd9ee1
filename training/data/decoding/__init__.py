"""Decoding of untrusted pictures in a confined child process."""
