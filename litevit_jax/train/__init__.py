"""How it is learned: the same loop for every objective."""
