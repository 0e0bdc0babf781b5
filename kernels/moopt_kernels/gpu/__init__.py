"""What only the Triton kernels use: their layout, tiles, launch configurations."""
