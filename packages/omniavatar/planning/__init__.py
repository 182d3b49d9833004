"""Arithmetic of sizes: parameters and memory of generation by stage, and the memory mode that fits a device."""
