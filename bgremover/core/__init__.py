"""Decisions only: no disk, no network, no clock, no chance, no logging."""
