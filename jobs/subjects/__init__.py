"""Subjects: their settings, their stored pictures, their LoRAs, and drawing with them."""
