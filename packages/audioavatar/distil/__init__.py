"""Distillation from a video diffusion model: the teacher's interface, small teachers, gradients of its score."""
