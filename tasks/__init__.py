"""Tasks, one file each; installed as `steerbench.tasks`."""
