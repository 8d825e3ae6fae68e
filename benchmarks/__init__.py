"""Scripts that measure what a number or a sentence of this project rests on; see README.md."""
