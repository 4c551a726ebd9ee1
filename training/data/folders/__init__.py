"""Pictures from folders and archives: what is in them, and what a training would make of it."""
