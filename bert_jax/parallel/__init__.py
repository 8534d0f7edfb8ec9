"""The device mesh and the hosts; independent of BERT."""
