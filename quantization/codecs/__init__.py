"""Encode and decode one weight tensor, in numpy; one file for each family of schemes."""
