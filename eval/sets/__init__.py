"""Test sets: lists of clips and the inputs made from them."""
