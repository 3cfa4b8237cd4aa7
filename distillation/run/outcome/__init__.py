"""What a run hands out, and what a run takes up of it."""
