"""Choosing a profile by measurement."""
