"""What a record of training data is: packing, layout, truncation, special ids."""
