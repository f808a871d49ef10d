"""What `fit` returns: the description of a steering, and its parts."""
