"""Watches a folder and brings every image dropped there back without its background."""

__version__ = "0.1.0"
