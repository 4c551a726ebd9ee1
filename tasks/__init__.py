"""The Celery application, its tasks around `jobs`, the sweeps and the RabbitMQ ingress."""
