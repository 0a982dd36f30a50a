"""An image-classification trainer on the annealing core of dreamsa; not written yet."""
