"""Results: what identifies them, how they are kept, ranked and written."""
