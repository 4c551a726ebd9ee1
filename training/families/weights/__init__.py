"""The files of base models: find, check, fingerprint, quantise and load them."""
