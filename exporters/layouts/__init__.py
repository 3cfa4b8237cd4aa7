"""What a bundle holds: its graphs and their ports, its sampler, by layout."""
