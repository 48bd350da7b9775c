"""See, steer, shrink, spread and swap attention in any PyTorch model."""
