"""Steerings of other libraries, in and out: control vectors, vectors by layer, and checkpoints with the edit inside."""
