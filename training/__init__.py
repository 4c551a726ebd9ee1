"""Pictures to a LoRA file. Knows nothing of Celery, credits or the web; torch is imported only below this room."""
