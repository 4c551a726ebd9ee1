"""The messages of tasks: how they are routed, traced, and continued by a canvas."""
