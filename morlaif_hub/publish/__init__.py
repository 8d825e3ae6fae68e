"""Publishing that proves itself, and checking what others claim."""
