"""Image-classification training on the annealing core of dreamsa: SEAL, its relatives and their
controls."""
