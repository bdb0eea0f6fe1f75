"""What runs the networks fast and within their means: engines, cost, memory, named stages."""
