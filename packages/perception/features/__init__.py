"""Networks whose features are compared: Inception, I3D, pose."""
