"""Steering methods, one file each; installed as `steerbench.methods`."""
