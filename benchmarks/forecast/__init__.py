"""What a graph will take on a processor: counted work, and how fast a processor does it."""
