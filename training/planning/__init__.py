"""Forecast of a training: FLOPs, memory, time and traffic, before it starts."""
