"""The life of one training: what is asked, who works on it, which moves are legal, and what each stage does."""
