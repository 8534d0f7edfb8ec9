"""Output kinds: the head, the loss and the answers of a task. One file per kind; `table.py` lists them all."""
