"""MIL's operations in torch, a file for each family; each ends in its table."""
