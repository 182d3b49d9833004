"""The small world: drawn talking heads with known truth, and tiny trained stand-ins for every pretrained model."""
