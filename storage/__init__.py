"""What is kept: the database, the object store, and the guarded way in for pictures from outside."""
