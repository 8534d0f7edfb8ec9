"""The mesh and the hosts; knows no BERT."""
