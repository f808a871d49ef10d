"""A reward model for a task's preference pairs, where none is at hand: a head on frozen states, or the last blocks."""
