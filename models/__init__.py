"""Networks (x, label) -> array of x's shape, and `score.py`, which makes score functions of them."""
