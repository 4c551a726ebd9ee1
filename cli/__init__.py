"""The `imprint` command (`celery -A tasks.app imprint …`) and the supervisor of a whole stack on one machine."""
