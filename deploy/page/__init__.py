"""A browser bundle's page: its files, its server, and a browser that is driven."""
