"""Repairs a network that somebody may have tampered with, from a little clean data: start reading at repair.py."""
