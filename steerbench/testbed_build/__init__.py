"""How the testbed is made and measured."""
