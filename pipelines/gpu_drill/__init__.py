"""One accelerator measured in a few minutes: is it right, and how fast is what this project does on it."""
