"""Data modules: streams of demonstrations and of step labels, batched alike for any split, resumed exactly."""
