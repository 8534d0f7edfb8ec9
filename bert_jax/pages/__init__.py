"""Pages of curves and results: one HTML file with no other files, made from what a run writes into its workdir."""
