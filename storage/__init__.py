"""The database, the object store, and the guarded download of pictures."""
