"""The RabbitMQ side of the ingress: its queues, its consumer, and the messages of producers without Celery."""
