"""Rasteriser of 3D Gaussian particles: projection, compositing, and gsplat where there is CUDA."""
