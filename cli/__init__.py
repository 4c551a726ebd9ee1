"""The `imprint` command (`celery -A tasks.app imprint …`), and the supervisor of a stack on one machine."""
