"""What a run's numbers say: in words, as a page and as a table for a terminal."""
