"""Methods and tasks: where they are, what they are called, and how their files are read."""
